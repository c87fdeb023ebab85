"""What the benchmark makes of its measurements: ratios, verdicts and tables."""

import numpy as np
import pytest

from bench import figures, report
from bench.profile import by_operator, shares, work
from bench.rows import ROWS, choose
from build import metrics


def test_a_summary_is_the_median_and_what_it_lies_between() -> None:
    assert figures.summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


def test_a_ratio_to_what_was_not_measured_is_none() -> None:
    assert figures.ratio(2.0, None) is None
    assert figures.ratio(None, 2.0) is None
    assert figures.ratio(3.0, 2.0) == 1.5


def test_a_bar_is_missed_below_it_and_met_at_it() -> None:
    found = {"tau": 0.97, "r": 0.98}
    assert figures.missed(found, {"tau": 0.97, "r": 0.985, "other": None}) == ["r"]


def test_the_fastest_row_that_misses_a_bar_is_not_the_fastest_faithful_one() -> None:
    assert figures.fastest({"quick": 1.0, "good": 2.0}, ["good"]) == "good"
    assert figures.fastest({"quick": 1.0}, []) is None


def test_a_turned_vector_has_another_cosine_than_a_scaled_one() -> None:
    a = np.array([[1, 0], [1, 0]], np.float32)
    b = np.array([[7, 0], [0, 7]], np.float32)
    assert metrics.cosine(a, b).tolist() == [1.0, 0.0]


def test_a_table_is_as_wide_in_every_line() -> None:
    lines = figures.table(("row", "s"), [["seed", "1.25"], ["ours, longer", "0.5"]]).splitlines()
    assert len({len(line) for line in lines}) == 1


def test_rows_come_in_the_tables_order_and_unknown_ones_are_refused() -> None:
    assert [row.name for row in choose(["torch", "seed"])] == ["seed", "torch"]
    assert choose([]) == ROWS
    with pytest.raises(ValueError, match="quick came"):
        choose(["quick"])


def test_a_row_that_could_not_run_says_why_and_spoils_no_other() -> None:
    ran = {
        "seconds": {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3},
        "peak_bytes": 4e9,
        "bytes": 1e6,
        "cosine": {"mean": 1.0, "min": 1.0},
        "notes": {},
        "fidelity": {"missing": "no demo"},
    }
    gone = {"missing": "No module named 'openvino'", "fidelity": {"missing": "the same"}}
    text = report.engines({"seed": ran, "openvino": gone})
    assert "No module named 'openvino'" in text
    assert "2.00" in text


def test_noise_is_said_beside_the_figures_that_it_spoils() -> None:
    found = {
        "cpu_s": 0.01,
        "seconds": 60,
        "loaded_rss_bytes": 1,
        "resting_rss_bytes": 1,
        "peak_rss_bytes": 1,
    }
    assert "upper bounds" in report.section("idle", found, 0.4)
    assert "upper bounds" not in report.section("idle", found, 0.01)


def test_a_trace_is_summed_by_operator_over_the_kernels_of_all_runs_but_the_first() -> None:
    node = {"cat": "Node", "args": {"op_name": "MatMul"}}
    run = {"cat": "Session", "name": "model_run", "args": {}}
    events = [
        {**run, "ts": 0, "dur": 9e6},
        {**node, "ts": 1e6, "name": "a_kernel_time", "dur": 8e6},
        {**run, "ts": 10e6, "dur": 4e6},
        {**node, "ts": 11e6, "name": "a_kernel_time", "dur": 2e6},
        {**node, "ts": 11e6, "name": "a_fence_before", "dur": 9e6},
        {**run, "ts": 15e6, "dur": 5e6},
        {**node, "ts": 16e6, "name": "a_kernel_time", "dur": 3e6},
    ]
    assert by_operator(events) == {"MatMul": 2.5}


def test_the_full_model_takes_five_and_a_half_trillion_operations() -> None:
    assert sum(work(27, 4096, 1152, 4304)) == pytest.approx(5.5e12, rel=0.02)


def test_a_share_of_the_peak_counts_whoever_computes_the_layers() -> None:
    operators = {"MatMulIntegerToFloat": 1.0, "DynamicQuantizeMatMul": 3.0, "Attention": 2.0}
    linear, attention, whole = shares(operators, 8.0, linear=20.0, attention=10.0, peak=10.0)
    assert (linear.seconds, attention.seconds, whole.seconds) == (4.0, 2.0, 8.0)
    assert linear.row()[-2:] == ["50%", "2.00"]
    assert whole.row()[-2:] == ["38%", "5.00"]
