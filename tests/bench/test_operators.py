# SPDX-License-Identifier: Apache-2.0
"""What bench.operators reads from operators_time, and the table it makes."""

from bench.operators import fastest, parse, rows

OLD = """\
4096 tokens, 3 rounds: median ms of CPU time (fastest to slowest), operations a second
attention, AVX3_ZEN4                         320.5 (312.0 to 330.1)   0.24 T
q, k, v or out, AVX2 and VNNI                 36.4 (36.0 to 37.4)     0.30 T
"""
NEW = """\
4096 tokens, 1 rounds: median ms of CPU time (fastest to slowest), operations a second
attention, AVX512 and VNNI                   205.0 (208.0 to 208.0)   0.38 T
q, k, v or out, AVX2 and VNNI                 30.0 (30.0 to 30.0)     0.36 T
fc2, NEON                                     10.0 (10.0 to 10.0)     0.36 T
"""


def test_the_fastest_round_counts_and_older_names_are_understood() -> None:
    assert parse(OLD) == {
        "attention, AVX512 and VNNI": 312.0,
        "q, k, v or out, AVX2 and VNNI": 36.0,
    }


def test_of_two_runs_the_smaller_time_remains() -> None:
    assert fastest({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 1.5}) == {"a": 1.0, "b": 1.5}


def test_old_and_new_stand_in_one_row_with_their_ratio() -> None:
    assert rows({"old": parse(OLD), "now": parse(NEW)}) == [
        ["attention, AVX512 and VNNI", "312.000", "208.000", "1.50"],
        ["q, k, v or out, AVX2 and VNNI", "36.000", "30.000", "1.20"],
        ["fc2, NEON", "", "10.000", ""],
    ]


def test_without_an_older_commit_there_is_no_ratio() -> None:
    assert rows({"now": {"fc2, NEON": 10.0}}) == [["fc2, NEON", "10.000"]]


def test_a_time_too_short_to_print_has_no_ratio() -> None:
    times = {"old": {"bytes, AVX2": 0.1}, "now": {"bytes, AVX2": 0.0}}
    assert rows(times) == [["bytes, AVX2", "0.100", "0.000", ""]]
