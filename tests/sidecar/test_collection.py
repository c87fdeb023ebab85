"""What a collection finds, what it takes in and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar import places, quantised
from sidecar.case import MAX_METADATA_BYTES
from sidecar.case_store import About
from sidecar.collection import Collection, Vectors
from sidecar.errors import (
    CollectionExists,
    CollectionNotFound,
    RequestMalformed,
    TensorNotFinite,
    TensorShape,
)
from sidecar.quantised import Floats
from sidecar.whitening import principal_components

DIMS = 48
ABOUT = About("a" * 64, "projector", (448, 448), DIMS)
STRONG = np.random.default_rng(1).normal(size=DIMS).astype(np.float32) * 10
MEAN = np.random.default_rng(2).normal(size=DIMS).astype(np.float32) * 5


def vectors(seed: int) -> Vectors:
    """In a narrow cone, with one direction that hides the others, as an encoder's are."""
    return pooled(tokens(seed))


def tokens(seed: int) -> Any:
    draws = np.random.default_rng(seed)
    own = draws.normal(size=DIMS)
    return MEAN + STRONG * draws.normal() + own + draws.normal(size=(256, DIMS))


def noisy(seed: int) -> Vectors:
    """Another view of the same: the strong direction says nothing."""
    draws = np.random.default_rng([3, seed])
    noise = draws.normal(size=(256, DIMS)) * 0.5
    return pooled(tokens(seed) + STRONG * draws.normal() + noise)


def pooled(tokens: Any) -> Vectors:
    exact: Floats = np.asarray(tokens, np.float32)
    return Vectors.of(exact.mean(0, dtype=np.float32), exact)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.open(tmp_path / "cases", ABOUT, create=True)


def fill(collection: Collection, count: int) -> None:
    with collection.store.writing():
        for number in range(count):
            collection.add(
                f"case {number}", vectors(number), {"number": number, "even": number % 2 == 0}
            )


def exact(collection: Collection, count: int, query: Vectors) -> list[str]:
    """The order by float vectors and a whitening fitted on them, written out plainly."""
    floats = np.stack([vectors(number).pooled for number in range(count)]).astype(np.float64)
    mean = floats.mean(0)
    values, axes = np.linalg.eigh(np.cov(floats.T, bias=True))
    scale = axes @ np.diag(1 / np.sqrt(values.clip(0) + 0.1 * values.mean())) @ axes.T
    cases, asked = (floats - mean) @ scale, (query.pooled - mean) @ scale
    cosines = cases @ asked / np.linalg.norm(cases, axis=1) / np.linalg.norm(asked)
    return [f"case {number}" for number in np.argsort(-cosines)[:10]]


def test_whitening_finds_what_the_plain_cosine_does_not(collection: Collection) -> None:
    fill(collection, 256)
    pooled = np.stack([vectors(number).pooled for number in range(256)])
    unit = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    plain = ours = 0
    for number in range(0, 256, 8):
        query = noisy(number)
        plain += int(np.argmax(unit @ query.pooled)) == number
        ours += collection.search(query, k=1)[0].id == f"case {number}"
    assert ours >= 30 > 16 > plain  # of 32


def test_the_order_is_that_of_exact_floats(collection: Collection) -> None:
    fill(collection, 256)
    overlap = 0
    for number in range(1000, 1020):
        query = vectors(number)
        found = {match.id for match in collection.search(query)}
        overlap += len(found & set(exact(collection, 256, query)))
    assert overlap >= 180  # of 200: 48 dimensions, one of them strong, are hard for 8 bits


@pytest.mark.parametrize("count", [1, 2, 20, 31, 32, 63, 64, 80])
def test_a_case_is_most_similar_to_itself_at_every_size(collection: Collection, count: int) -> None:
    fill(collection, count)
    for number in range(0, count, 7):
        best = collection.search(vectors(number), k=1)[0]
        assert best.id == f"case {number}"
        assert 0.9 < best.similarity <= 1
        assert json.loads(best.metadata)["number"] == number


def test_an_empty_collection_has_no_matches(collection: Collection) -> None:
    assert collection.search(vectors(0)) == []
    assert collection.info()["count"] == 0


def test_similarities_fall_and_k_bounds_them(collection: Collection) -> None:
    fill(collection, 50)
    similarities = [match.similarity for match in collection.search(vectors(3), k=50)]
    assert len(similarities) == 50
    assert similarities == sorted(similarities, reverse=True)
    assert -1 <= similarities[-1] <= similarities[0] <= 1
    assert len(collection.search(vectors(3), k=7)) == 7


def test_the_order_survives_closing(collection: Collection) -> None:
    fill(collection, 70)
    before = collection.search(vectors(1000), k=70, regions=True)
    path = collection.store.path
    collection.close()
    assert Collection.open(path, ABOUT).search(vectors(1000), k=70, regions=True) == before


def test_where_keeps_cases_with_equal_metadata(collection: Collection) -> None:
    cases: list[dict[str, Any]] = [
        {"age": 1},
        {"age": 1.0, "name": 'a "quoted" \\ name'},
        {"age": True},
        {"age": "1"},
        {"nested": {"age": 1}},
        {"age": None},
        {},
    ]
    for number, metadata in enumerate(cases):
        collection.add(f"case {number}", vectors(number), metadata)

    def found(**where: Any) -> set[int]:
        return {int(match.id[5:]) for match in collection.search(vectors(0), where=where)}

    assert found(age=1) == {0, 1}
    assert found(age=True) == {2}
    assert found(age="1") == {3}
    assert found(age=None) == {5}
    assert found(age=1, name='a "quoted" \\ name') == {1}
    assert found(nested={"age": 1}) == {4}
    assert found(other=1) == set()


def test_the_same_case_again_is_a_success(collection: Collection) -> None:
    assert collection.add("case", vectors(1), {"a": 1})
    assert not collection.add("case", vectors(1), {"a": 1})
    close = Vectors(vectors(1).pooled * np.float32(1 + 1e-5), vectors(1).regions)
    assert not collection.add("case", close, {"a": 1})
    assert collection.count == 1


def test_another_case_needs_replace(collection: Collection) -> None:
    collection.add("case", vectors(1), {"a": 1})
    for of, metadata in ((vectors(2), {"a": 1}), (vectors(1), {"a": 2})):
        with pytest.raises(CollectionExists):
            collection.add("case", of, metadata)
    collection.add("case", vectors(2), {"a": 2}, replace=True)
    best = collection.search(vectors(2))[0]
    assert (collection.count, best.metadata) == (1, '{"a":2}')
    assert best.similarity > 0.99


def test_a_removed_case_is_not_found_again(collection: Collection) -> None:
    fill(collection, 40)
    collection.remove("case 7")
    assert collection.search(vectors(7), k=1)[0].id != "case 7"
    assert collection.count == 39
    with pytest.raises(CollectionNotFound):
        collection.remove("case 7")
    collection.add("case 7", vectors(7), {})
    assert collection.search(vectors(7), k=1)[0].id == "case 7"


@pytest.mark.parametrize(
    "id",
    [
        *("'; drop table cases; --", "a\0b", "__proto__", "../../etc/passwd", "\r\n\x1b[2J", " "),
        *("心電図", "\U0001f600", "é", "e\u0301", "x" * 256, "%", "\ufeffbom"),
    ],
)
def test_a_hostile_id_comes_back_as_it_was(collection: Collection, id: str) -> None:
    metadata = {id: [id, {id: None}], "__proto__": {"polluted": True}, "constructor": "x"}
    collection.add("another", vectors(2), {})
    collection.add(id, vectors(1), metadata)
    found = collection.search(vectors(1), k=1, where={"constructor": "x"})[0]
    assert (found.id, json.loads(found.metadata)) == (id, metadata)
    collection.remove(id)
    assert [match.id for match in collection.search(vectors(1))] == ["another"]


@pytest.mark.parametrize("id", ["", "x" * 257, "é" * 129, "half \ud83d of a pair"])
def test_an_id_out_of_bounds_is_refused(collection: Collection, id: str) -> None:
    with pytest.raises(RequestMalformed):
        collection.add(id, vectors(1), {})
    assert collection.count == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"text": "x" * MAX_METADATA_BYTES},
        {"half": "\ud83d"},
        {"bytes": b"x"},
        {"number": float("nan")},
        {"number": float("inf")},
        {1: "a number for a key"},
        {"list": (1, 2)},
        ["a list"],
    ],
    ids=str,
)
def test_metadata_that_are_no_json_object_are_refused(
    collection: Collection, metadata: Any
) -> None:
    with pytest.raises(RequestMalformed):
        collection.add("case", vectors(1), metadata)
    assert collection.count == 0


def test_metadata_may_take_all_they_are_allowed(collection: Collection) -> None:
    metadata = {"text": "x" * (MAX_METADATA_BYTES - len('{"text":""}'))}
    for number in range(4):
        collection.add(f"case {number}", vectors(number), metadata)
    assert [json.loads(match.metadata) for match in collection.search(vectors(1))] == [metadata] * 4


@pytest.mark.parametrize(
    ("pooled", "tokens", "error"),
    [
        (np.zeros(DIMS + 1, np.float32), np.zeros((256, DIMS), np.float32), TensorShape),
        (np.zeros(DIMS, np.float32), np.zeros((255, DIMS), np.float32), TensorShape),
        (np.full(DIMS, np.nan, np.float32), np.zeros((256, DIMS), np.float32), TensorNotFinite),
        (np.zeros(DIMS, np.float32), np.full((256, DIMS), np.inf, np.float32), TensorNotFinite),
        (np.zeros(DIMS, np.float32), np.full((256, DIMS), 1e30, np.float32), TensorNotFinite),
    ],
)
def test_vectors_that_are_none_are_refused(
    collection: Collection, pooled: Floats, tokens: Floats, error: type[Exception]
) -> None:
    with pytest.raises(error):
        collection.add("case", Vectors.of(pooled, tokens), {})
    with pytest.raises(error):
        collection.search(Vectors.of(pooled, tokens))


def test_vectors_of_zeros_and_of_equal_images_are_taken(collection: Collection) -> None:
    zeros = Vectors.of(np.zeros(DIMS, np.float32), np.zeros((256, DIMS), np.float32))
    with collection.store.writing():
        for number in range(70):
            collection.add(f"case {number}", zeros, {})
    found = collection.search(zeros, k=3, regions=True)
    assert [match.similarity for match in found] == [0, 0, 0]
    assert [match.regions for match in found] == [(), (), ()]


def test_int8_keeps_a_vector_within_half_a_step() -> None:
    floats = np.random.default_rng(0).normal(size=(100, DIMS)).astype(np.float32)
    floats[0] = 0
    scales, codes = quantised.quantise(floats)
    assert (np.abs(scales[:, None] * codes - floats) <= scales[:, None] * 0.5001).all()
    unpacked = quantised.unpack(quantised.pack(floats), DIMS)
    assert (np.abs(unpacked - floats) <= scales[:, None] * 0.57).all()  # the scale is a float16


def test_components_are_the_same_by_either_gram_matrix() -> None:
    floats = np.stack([vectors(number).pooled for number in range(60)])
    floats -= floats.mean(0)
    wide = np.concatenate([floats, np.zeros_like(floats)], axis=1)  # 60 cases of 48, and of 96
    rows, eigenvalues = principal_components(floats)
    others, same = principal_components(wide)
    assert np.allclose(eigenvalues, same, rtol=1e-4)
    assert np.allclose(np.abs(floats @ rows.T), np.abs(wide @ others.T), atol=1e-3)


# Places


def picture(seed: int) -> Floats:
    """Tokens [256, dims] that look different at each place, and say a little of where they are."""
    draws = np.random.default_rng([4, seed])
    coarse = draws.normal(size=(4, 4, DIMS))
    return with_places(np.kron(coarse, np.ones((4, 4, 1))), draws)


def with_places(content: Any, draws: np.random.Generator) -> Floats:
    where = np.kron(np.random.default_rng(5).normal(size=(4, 4, DIMS)), np.ones((4, 4, 1))) * 1.5
    tokens = content + where + draws.normal(size=(16, 16, DIMS)) * 0.4
    return np.asarray(tokens.reshape(256, DIMS), np.float32)


def shifted(seed: int) -> Floats:
    """The same picture with its right half moved to the left."""
    draws = np.random.default_rng([4, seed])
    coarse = draws.normal(size=(4, 4, DIMS))
    coarse[:, :2] = coarse[:, 2:]
    coarse[:, 2:] = np.random.default_rng([6, seed]).normal(size=(4, 2, DIMS))
    return with_places(np.kron(coarse, np.ones((4, 4, 1))), np.random.default_rng([7, seed]))


@pytest.mark.parametrize(("count", "chance"), [(30, 0.1), (80, 0.05)])
def test_places_lie_where_the_content_went(
    collection: Collection, count: int, chance: float
) -> None:
    with collection.store.writing():
        for number in range(count):
            tokens = picture(number)
            collection.add(f"case {number}", pooled(tokens), {})
    right = unrelated = pairs = 0
    for number in range(0, count, 5):
        tokens = shifted(number)
        for match in collection.search(pooled(tokens), k=count, regions=True):
            assert match.regions is not None
            assert len(match.regions) <= 5
            if match.id == f"case {number}":
                pairs += len(match.regions)
                right += sum(
                    np.allclose(
                        middle(pair.query) + np.array([0, 0.5]), middle(pair.match), atol=0.125
                    )
                    for pair in match.regions
                )
            else:
                unrelated += bool(match.regions)
    queries = len(range(0, count, 5))
    assert pairs >= 3 * queries
    assert right >= 0.95 * pairs
    assert unrelated <= chance * queries * (count - 1)


def test_places_of_a_crop_lie_where_it_was_cut(collection: Collection) -> None:
    """The crop is a quarter of the picture, magnified; it asks, or is asked for."""
    draws = np.random.default_rng(8)
    coarse = draws.normal(size=(60, 8, 8, DIMS)) * 1.5
    wholes = [with_places(np.kron(of, np.ones((2, 2, 1))), draws) for of in coarse]
    cuts = [divmod(number, 3) for number in range(9)]  # in quarters: where the crop begins
    crops = [
        with_places(
            np.kron(of[2 * row : 2 * row + 4, 2 * column : 2 * column + 4], np.ones((4, 4, 1))),
            draws,
        )
        for of, (row, column) in zip(coarse, cuts, strict=False)
    ]
    with collection.store.writing():
        for number, tokens in enumerate(wholes):
            collection.add(f"whole {number}", pooled(tokens), {})
        for number, tokens in enumerate(crops):
            collection.add(f"crop {number}", pooled(tokens), {})
    shown = right = 0
    for number, (row, column) in enumerate(cuts):
        for asks, answers in (("whole", "crop"), ("crop", "whole")):
            tokens = (wholes if asks == "whole" else crops)[number]
            found = collection.search(pooled(tokens), k=69, regions=True)
            pairs = next(match.regions for match in found if match.id == f"{answers} {number}")
            for pair in pairs or ():
                crop, whole = pair.query, pair.match
                if asks == "whole":
                    crop, whole = whole, crop
                cut = np.array([row, column]) / 4
                shown += 1
                right += np.allclose(cut + middle(crop) / 2, middle(whole), atol=0.125)
    assert shown >= 60  # of 90
    assert right >= 0.95 * shown


def middle(box: places.Box) -> Any:
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def test_few_cases_have_no_places(collection: Collection) -> None:
    fill(collection, places.LEAST_CASES - 1)
    found = collection.search(vectors(1), regions=True)[0]
    assert found.regions == ()
    assert collection.search(vectors(1))[0].regions is None


def test_regions_are_the_means_of_their_tokens() -> None:
    tokens = np.arange(256, dtype=np.float32).reshape(16, 16)
    found = places.regions(tokens.reshape(256, 1))[:, 0]
    assert found[0] == tokens[:4, :4].mean()
    assert found[6] == tokens[4:8, 8:12].mean()


def test_a_shard_adopts_all_that_was_fitted(collection: Collection, tmp_path: Path) -> None:
    fill(collection, places.BASIS_AT)
    shard = Collection.open(tmp_path / "shard", ABOUT, create=True)
    shard.adopt_statistics(collection)
    kept = [name for (name,) in collection.store._db.execute("select name from arrays")]
    assert {"whitening.gains", "basis.axes", "positions", "places.whitening"} <= set(kept)
    for name in kept:
        there, adopted = collection.store.array(name), shard.store.array(name)
        assert there is not None
        assert adopted is not None
        assert np.array_equal(there, adopted), name
