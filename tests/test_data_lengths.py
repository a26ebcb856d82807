from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.data.inputs import InputFile
from chatspace.data.inventory import inventory
from chatspace.data.lengths import with_text_steps
from chatspace.data.selection import SelectedRows
from chatspace.errors import InputError
from chatspace.plan.slicing import make_slices, shard_text_bytes
from chatspace.spec.dataset import DatasetSection

ROWS, SHARD = 1000, 20
LENGTHS = [3] * 800 + [700] * 200


def section(text_field: str = "text") -> DatasetSection:
    return DatasetSection(source="parquet", path="unused", text_field=text_field)


def written(folder: Path, values: Any, **options: Any) -> list[InputFile]:
    pq.write_table(pa.table({"text": values}), folder / "a.parquet", **options)
    return inventory([folder / "a.parquet"], section())


def texts(lengths: list[int]) -> list[str]:
    return [f"{row % 1000:03d}".ljust(n, "x")[:n] for row, n in enumerate(lengths)]


def slowest_over_mean(weights: Any, lengths: list[int]) -> float:
    work = np.add.reduceat(np.array(lengths), np.arange(0, len(lengths), SHARD))
    sums = [work[s.shard_start : s.shard_stop].sum() for s in make_slices(weights, 10)]
    return float(max(sums) / np.mean(sums))


def test_with_text_steps_heavy_tail_in_one_row_group_is_seen(tmp_path: Path) -> None:
    files = written(tmp_path, texts(LENGTHS))
    assert files[0].row_groups == (ROWS,)
    assert slowest_over_mean(shard_text_bytes(files, ROWS, SHARD), LENGTHS) > 4
    read = with_text_steps(files, section(), SHARD)
    assert read[0].text_steps == (tuple(sum(LENGTHS[i : i + 5]) for i in range(0, ROWS, 5)),)
    weights = shard_text_bytes(read, ROWS, SHARD)
    assert weights.tolist() == [60] * 40 + [14_000] * 10
    assert slowest_over_mean(weights, LENGTHS) < 1.2


def test_with_text_steps_dictionary_weighs_what_its_rows_do(tmp_path: Path) -> None:
    long = ["a" * 5000, "b" * 5000]
    files = written(tmp_path, ["s"] * 500 + long * 250)
    assert files[0].text_bytes[0] < 50_000
    weights = shard_text_bytes(with_text_steps(files, section(), 100), ROWS, 100)
    assert weights.tolist() == [100] * 5 + [500_000] * 5


def test_with_text_steps_group_of_few_shards_is_not_read(tmp_path: Path) -> None:
    files = written(tmp_path, texts(LENGTHS), row_group_size=2 * SHARD)
    (tmp_path / "a.parquet").unlink()
    assert with_text_steps(files, section(), SHARD) == files


def test_with_text_steps_heaviest_groups_are_read_within_the_limit(tmp_path: Path) -> None:
    lengths = [200] * 250 + [400] * 250 + [20_000] * 250 + [300] * 250
    files = written(tmp_path, texts(lengths), row_group_size=250, use_dictionary=False)
    read = with_text_steps(files, section(), SHARD, read_bytes=(8 << 20) + 200_000)
    assert [len(steps) for steps in read[0].text_steps] == [0, 50, 0, 50]
    weights = shard_text_bytes(read, ROWS, SHARD)
    assert weights[13:25].tolist() == [SHARD * 400] * 12
    assert weights.sum() == pytest.approx(sum(lengths), rel=0.01)


def test_with_text_steps_more_text_than_the_footer_says_is_left(tmp_path: Path) -> None:
    files = written(tmp_path, ["a" * 5000] * ROWS)
    assert files[0].text_bytes[0] < 40_000
    assert with_text_steps(files, section(), SHARD, read_bytes=(4 << 20) + 200_000) == files


def test_with_text_steps_only_groups_with_many_read_rows_are_read(tmp_path: Path) -> None:
    files = written(tmp_path, texts(LENGTHS), row_group_size=500)
    sample = SelectedRows(first_row=0, path="rows", sha256="0", group_rows=(2 * SHARD, 200))
    read = with_text_steps(files, section(), SHARD, selected=sample)
    assert [len(steps) for steps in read[0].text_steps] == [0, 100]
    weights = shard_text_bytes(read, 2 * SHARD + 200, SHARD, sample)
    assert len(weights) == 12
    assert weights[-4:].tolist() == [14_000] * 4


def test_shard_text_bytes_skipped_rows_do_not_count(tmp_path: Path) -> None:
    files = with_text_steps(written(tmp_path, texts(LENGTHS)), section(), SHARD)
    rest = SelectedRows(first_row=790, path=None, sha256=None, group_rows=(210,))
    weights = shard_text_bytes(files, 210, SHARD, rest)
    assert weights.tolist() == [30 + 7000, *[14_000] * 9, 7000]


TURNS = [[{"role": "user", "content": "x" * n}, {"role": "bot", "content": "yy"}] for n in LENGTHS]


@pytest.mark.parametrize(
    ("values", "field", "expected"),
    [
        (pa.array(TURNS), "text[].content", 5),
        (pa.array(texts(LENGTHS), pa.large_string()), "text", 3),
        (pa.array(texts(LENGTHS), pa.string_view()), "text", 3),
        (pa.array(texts(LENGTHS)).dictionary_encode(), "text", 3),
        (pa.array([{"a": {"b": "x" * n}, "n": 1} for n in LENGTHS]), "text.a.b", 3),
        (pa.array([[("k", "x" * n)] for n in LENGTHS], pa.map_("string", "string")), "text", 4),
        (pa.array([None if n == 3 else "x" * n for n in LENGTHS]), "text", 0),
    ],
)
def test_with_text_steps_counts_the_leaf_of_any_type(
    tmp_path: Path, values: pa.Array, field: str, expected: int
) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    dataset = section(field)
    if pa.types.is_map(values.type):
        dataset = DatasetSection(source="parquet", path="unused", template="{{ text }}")
    files = with_text_steps(inventory([tmp_path / "a.parquet"], dataset), dataset, SHARD)
    weights = shard_text_bytes(files, ROWS, SHARD)
    more = expected - 3 if expected else 0
    assert weights[:40].tolist() == [SHARD * expected] * 40
    assert weights[40:].tolist() == [SHARD * (700 + more)] * 10


def test_with_text_steps_damaged_page_names_its_file(tmp_path: Path) -> None:
    files = written(tmp_path, texts(LENGTHS), compression="zstd")
    path = tmp_path / "a.parquet"
    content = bytearray(path.read_bytes())
    content[10:200] = bytes(190)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^Truncated or damaged Parquet: .*a\.parquet"):
        with_text_steps(files, section(), SHARD)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=120),
    per_shard=st.integers(1, 40),
    per_group=st.integers(1, 120),
)
def test_with_text_steps_any_groups_keep_the_sum_and_nearly_each_shard(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], per_shard: int, per_group: int
) -> None:
    folder = tmp_path_factory.mktemp("lengths")
    files = written(folder, ["x" * n for n in lengths], row_group_size=per_group)
    read = with_text_steps(files, section(), per_shard)
    weights = shard_text_bytes(read, len(lengths), per_shard)
    assert len(weights) == -(-len(lengths) // per_shard)
    assert (weights >= 0).all()
    if read[0].text_steps and all(read[0].text_steps):
        assert weights.sum() == sum(lengths)
        exact = [sum(lengths[i : i + per_shard]) for i in range(0, len(lengths), per_shard)]
        # A shard's borders may lie within a step, a quarter of a shard or one row.
        step = 2 * (-(-per_shard // 4)) * 90
        assert all(abs(a - b) <= step for a, b in zip(weights.tolist(), exact, strict=True))
