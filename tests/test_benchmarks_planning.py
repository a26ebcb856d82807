"""The benchmarks of planning run, and their tables hold what they promise."""

from __future__ import annotations

from tests.test_benchmarks_gpu import run, table


def test_planning_quick_reads_what_it_says_in_bounded_memory() -> None:
    rows = {row["rows that are read"]: row for row in table(run("planning.py", "--quick"))}
    counted = {name: int(row["rows"].replace(",", "")) for name, row in rows.items()}
    assert counted == {
        "all rows": 2_000_000,
        "all rows, row groups read": 2_000_000,
        "all rows, id_field": 200_000,
        "skip_rows, max_rows": 1_987_655,
        "sample n = 10,000,000": 2_000_000,
        "sample fraction = 0.5": 1_000_000,
        "sample, 1,000 strata": 1_000_000,
    }
    assert all(0 < float(row["peak GB"]) < 1 for row in rows.values())
    assert all(0 < int(row["slices"]) <= 256 for row in rows.values())


def test_slices_quick_are_more_even_by_bytes_in_any_row_groups() -> None:
    text = run("slices.py", "--quick", "--tasks", "8")
    found = [row for row in table(text) if row["corpus"] == "one kind after the other"]
    by_rows, small, one, best = (float(row["x"]) for row in found)
    assert [row["balanced by"] for row in found] == ["rows", "bytes", "bytes", "(tokens)"]
    assert found[1]["row groups of"] == "200"
    assert int(found[2]["row groups of"].replace(",", "")) > 1000
    assert 1 <= best <= min(small, one)
    assert max(small, one) < 0.7 * by_rows
