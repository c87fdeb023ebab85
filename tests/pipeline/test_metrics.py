"""The instruments, against answers that someone else computed: by hand, or from a textbook.

Each table is small enough to be checked on paper; a deliberate fault in a metric fails a test.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from build.metrics import (
    CLEAR,
    Array,
    NotFinite,
    changes,
    compare,
    cosine,
    kendall,
    neighbours,
    pearson,
    similarities,
)
from sidecar.job import OUTPUTS


def rows(*values: list[float]) -> Array:
    return np.array(values, np.float32)


def test_cosine_of_triangles_that_pythagoras_knew() -> None:
    a = rows([3, 4], [3, 4], [1, 0], [1, 0], [2, 1])
    b = rows([4, 3], [6, 8], [0, 5], [-2, 0], [1, 2])
    assert cosine(a, b) == pytest.approx([24 / 25, 1, 0, -1, 4 / 5])


def test_cosine_of_vectors_without_a_direction() -> None:
    zero, one = rows([0, 0]), rows([1, 0])
    assert cosine(zero, zero) == 1
    assert cosine(zero, one) == 0


def test_cosine_adds_up_in_double_precision() -> None:
    a = np.full((1, 1 << 20), 0.1, np.float32)
    assert cosine(a, 3 * a)[0] == pytest.approx(1, abs=1e-12)


def test_pearson_of_anscombes_quartet() -> None:
    """Anscombe 1973, "Graphs in Statistical Analysis": r is 0.816 for each of the four."""
    x = rows([10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5])[0]
    first = rows([8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68])[0]
    second = rows([9.14, 8.14, 8.74, 8.77, 9.26, 8.10, 6.13, 3.10, 9.13, 7.26, 4.74])[0]
    assert pearson(x, first) == pytest.approx(0.81642, abs=5e-6)
    assert pearson(x, second) == pytest.approx(0.81624, abs=5e-6)


def test_pearson_ignores_offset_and_scale_and_knows_the_sign() -> None:
    x = rows([1, 2, 4, 8])[0]
    assert pearson(x, 100 + 3 * x) == pytest.approx(1)
    assert pearson(x, -x) == pytest.approx(-1)


def test_pearson_of_flat_heatmaps() -> None:
    flat, other = np.zeros(4, np.float32), rows([0, 1, 0, 1])[0]
    assert pearson(flat, flat) == 1
    assert pearson(flat, other) == pearson(other, flat) == 0


def test_kendall_of_a_ranking_counted_by_hand() -> None:
    # Of the ten pairs, (3, 2) and (5, 4) are discordant.
    assert kendall(np.arange(5.0), np.array([1.0, 3, 2, 5, 4])) == pytest.approx((8 - 2) / 10)
    assert kendall(np.arange(5.0), -np.arange(5.0)) == pytest.approx(-1)


def test_kendall_with_ties_counted_by_hand() -> None:
    # 5 concordant, none discordant, one tie in b: 5 / sqrt(6 * 5).
    assert kendall(np.arange(4.0), np.array([1.0, 2, 2, 3])) == pytest.approx(5 / 30**0.5)


def test_kendall_of_constant_rankings() -> None:
    assert kendall(np.ones(3), np.ones(3)) == 1
    assert kendall(np.ones(3), np.arange(3.0)) == 0
    assert kendall(np.ones(1), np.ones(1)) == 1  # two images have one similarity


def test_similarities_are_the_cosines_of_all_pairs() -> None:
    table = similarities(rows([3, 4], [4, 3], [0, 2]))
    assert table == pytest.approx(np.array([[1, 0.96, 0.8], [0.96, 1, 0.6], [0.8, 0.6, 1]]))


def table(*upper: float) -> NDArray[np.float64]:
    """Symmetric, from the entries above the diagonal: 01, 02, 03, 12, 13, 23."""
    result = np.eye(4)
    result[np.triu_indices(4, 1)] = upper
    return np.maximum(result, result.T)


def test_neighbours_that_change_and_those_that_led_clearly() -> None:
    before = table(0.9, 0.8, 0.1, 0.2, 0.3, 0.7)
    after = table(0.9, 0.8, 0.1, 0.2, 0.3, 0.85)
    kept, clear = neighbours(before, after)
    # 0 and 1 keep each other; 2 turns from 0 to 3; 3 keeps 2.
    assert kept.tolist() == [True, True, False, True]
    assert clear.tolist() == [True] * 4


def test_a_lead_below_the_limit_is_not_clear() -> None:
    before = table(0.9, 0.9 - 0.9 * CLEAR, 0.1, 0.2, 0.3, 0.7)
    _, clear = neighbours(before, before)
    assert clear.tolist() == [False, True, True, True]


Outputs = dict[str, dict[str, Array]]


def outputs(pooled: Array, angles: NDArray[np.float64] | None = None) -> Outputs:
    """Of images a, b, c: tokens at these angles, one rising heatmap, these pooled vectors."""
    angles = np.zeros((3, 4)) if angles is None else angles
    return {
        name: {
            OUTPUTS[0]: np.stack([np.cos(turn), np.sin(turn)], -1)[None].astype(np.float32),
            OUTPUTS[1]: rows([0, 1, 2, 3]),
            OUTPUTS[2]: vector[None],
        }
        for name, turn, vector in zip("abc", angles, pooled, strict=True)
    }


POOLED = rows([1, 0], [0.8, 0.6], [0, 1])


def figures(expected: Outputs, actual: Outputs) -> dict[str, tuple[Any, str]]:
    """By name, the value and the image that is worst."""
    return {name: (figure.value, figure.image) for name, figure in compare(expected, actual)}


def test_equal_outputs_have_perfect_figures() -> None:
    values = [figure.value for _, figure in compare(outputs(POOLED), outputs(POOLED))]
    assert values == pytest.approx([1] * 9)


def test_compare_names_the_worst_token_and_its_image() -> None:
    angles = np.zeros((3, 4))
    angles[1, 2] = np.pi / 3  # one token of twelve has a cosine of 1/2
    found = figures(outputs(POOLED), outputs(POOLED, angles))
    assert found["token_cosine_mean"] == (pytest.approx((11 + 0.5) / 12), "b")
    assert found["token_cosine_min"] == (pytest.approx(0.5), "b")
    # numpy's percentile: the 0.11th of the sorted, between 0.5 and 1
    assert found["token_cosine_p1"] == (pytest.approx(0.5 + 0.11 * 0.5), "b")


def test_compare_names_the_worst_heatmap() -> None:
    actual = outputs(POOLED)
    actual["c"][OUTPUTS[1]] = rows([0, 1, 3, 2])  # r = 0.8
    found = figures(outputs(POOLED), actual)
    assert found["heatmap_r_min"] == (pytest.approx(0.8), "c")
    assert found["heatmap_r_mean"] == (pytest.approx((1 + 1 + 0.8) / 3), "c")


def test_compare_finds_the_pooled_vector_that_turned_and_the_neighbour_that_changed() -> None:
    # Similarities 0.8, 0, 0.6: the neighbours of a, b, c are b, a, b, the nearest by 0.2 or more.
    turned = rows([1, 0], [0.6, 0.8], [0, 1])  # 0.6, 0, 0.8: b turns from a to c
    found = figures(outputs(POOLED), outputs(turned))
    assert found["pooled_cosine_min"] == (pytest.approx(0.96), "b")
    assert found["neighbours_kept"] == (pytest.approx(2 / 3), "b")
    assert found["clear_neighbours_kept"] == (pytest.approx(2 / 3), "b")
    # Of three pairs of similarities one is discordant: (2 - 1) / 3.
    assert found["kendall_tau"][0] == pytest.approx(1 / 3)


def test_a_change_of_neighbour_says_by_how_much_the_old_one_led() -> None:
    turned = rows([1, 0], [0.6, 0.8], [0, 1])  # b: from a, at 0.8, to c, at 0.6
    (change,) = changes(outputs(POOLED), outputs(turned))
    assert (change.image, change.before, change.after) == ("b", "a", "c")
    assert change.lead == pytest.approx(0.2)
    assert changes(outputs(POOLED), outputs(POOLED)) == []


def test_a_neighbour_without_a_lead_may_change_and_no_clear_one_is_lost() -> None:
    near = rows([1, 0], [0.7071, 0.7072], [0, 1])  # b is a hair nearer to c
    turned = rows([1, 0], [0.7072, 0.7071], [0, 1])
    found = figures(outputs(near), outputs(turned))
    assert found["neighbours_kept"][0] == pytest.approx(2 / 3)
    assert found["clear_neighbours_kept"][0] == 1


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_not_finite_is_named(output: str, value: float) -> None:
    actual = outputs(POOLED)
    actual["b"][output].flat[0] = value
    with pytest.raises(NotFinite, match=f"{output} of b"):
        dict(compare(outputs(POOLED), actual))
