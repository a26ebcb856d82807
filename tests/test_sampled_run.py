"""Runs that read some rows of a split: the same rows, ids and vectors, whoever asks again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from chatspace.errors import IncompleteError, InputError
from chatspace.jobs.gather import gather_run, verify_run
from chatspace.jobs.local import slices_of
from chatspace.jobs.setup import set_up
from chatspace.jobs.task import run_task
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.plan.store import load_plan
from tests.conftest import SpecMaker, texts, write_parquet

PICKS: dict[str, dict[str, Any]] = {
    "sample": {"sample": {"n": 70, "seed": 5}},
    "skip": {"skip_rows": 120, "max_rows": 70},
    "where": {"where": "kind = 'b'"},
    "all of them": {
        "where": "n > 10",
        "skip_rows": 3,
        "max_rows": 200,
        "sample": {"fraction": 0.4, "stratify_by": "kind"},
    },
}


@pytest.fixture
def data(tmp_path: Path) -> str:
    """400 rows in two files, with something to choose by."""
    for part in range(2):
        columns = {
            "text": texts(200, seed=part),
            "kind": [("a", "b", "a")[n % 3] for n in range(200)],
            "n": list(range(200 * part, 200 * part + 200)),
        }
        write_parquet(tmp_path / "rows" / f"train-{part}.parquet", columns, row_group_size=64)
    return str(tmp_path / "rows")


def run_all(plan: Plan) -> None:
    path = Layout(Path(plan.workspace)).run(plan.run_id).plan
    for split, slice_ in slices_of(plan):
        run_task(path, split.name, slice_.index, of=len(split.slices))
    gather_run(plan)


def stored(plan: Plan) -> dict[str, tuple[int, str, bytes]]:
    """What each id got: its row, its text and its vector."""
    folder = Path(plan.workspace) / plan.splits[0].output_dir
    rows: dict[str, tuple[int, str, bytes]] = {}
    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row["id"] not in rows
            vector = np.array(row["embedding"], np.float32).round(4).tobytes()
            rows[row["id"]] = (row["row_index"], row["text"], vector)
    return rows


@pytest.mark.parametrize("picks", PICKS.values(), ids=PICKS.keys())
def test_run_of_some_rows_gives_them_the_ids_and_texts_of_a_whole_run(
    make_spec: SpecMaker, tmp_path: Path, data: str, picks: dict[str, Any]
) -> None:
    plan = set_up(make_spec(dataset={"path": data, **picks}, slices={"count": 3})).plan
    run_all(plan)
    assert verify_run(plan) == {"train": plan.splits[0].n_shards}
    found = stored(plan)
    everything = texts(200, seed=0) + texts(200, seed=1)
    assert len(found) == plan.splits[0].rows
    for id_, (row_index, text, _) in found.items():
        assert id_ == f"rows/train/{row_index}"
        assert text == everything[row_index]


def test_run_of_some_rows_does_not_depend_on_slices_or_on_where_it_lies(
    make_spec: SpecMaker, tmp_path: Path, data: str
) -> None:
    dataset = {"path": data, **PICKS["all of them"]}
    plans = []
    for count in (1, 3):
        spec = make_spec(
            dataset=dataset, slices={"count": count}, workspace=str(tmp_path / f"ws{count}")
        )
        plans.append(set_up(spec).plan)
        assert set_up(spec).plan.run_id == plans[-1].run_id
        run_all(plans[-1])
    assert plans[0].plan_sha256 == plans[1].plan_sha256
    assert stored(plans[0]) == stored(plans[1])
    shutil.move(plans[0].workspace, tmp_path / "moved")
    moved = load_plan(Layout(tmp_path / "moved").run(plans[0].run_id).plan)
    assert verify_run(moved) == {"train": moved.splits[0].n_shards}


def test_run_of_other_rows_is_another_run(make_spec: SpecMaker, data: str) -> None:
    ids = {
        set_up(make_spec(dataset={"path": data, **keys})).plan.run_id
        for keys in (*PICKS.values(), {}, {"sample": {"n": 70, "seed": 6}})
    }
    assert len(ids) == len(PICKS) + 2


def test_task_whose_list_of_rows_is_gone_fails_and_setup_writes_it_again(
    make_spec: SpecMaker, data: str
) -> None:
    spec = make_spec(dataset={"path": data, **PICKS["sample"]})
    plan = set_up(spec).plan
    selected = plan.splits[0].selected
    assert selected is not None
    assert selected.path is not None
    (Path(plan.workspace) / selected.path).unlink()
    with pytest.raises(InputError, match=r"No such file: .*run setup again"):
        run_all(plan)
    assert set_up(spec).plan.run_id == plan.run_id
    run_all(plan)


def test_verify_finds_a_shard_with_rows_that_were_not_drawn(
    make_spec: SpecMaker, tmp_path: Path, data: str
) -> None:
    spec = make_spec(dataset={"path": data, **PICKS["sample"]})
    plan = set_up(spec).plan
    run_all(plan)
    # Another list of the same length in its place: the shards hold rows that it does not name.
    other = set_up(
        make_spec(
            dataset={"path": data, "sample": {"n": 70, "seed": 9}}, workspace=str(tmp_path / "w2")
        )
    ).plan
    assert plan.splits[0].selected is not None
    assert other.splits[0].selected is not None
    strange = Path(other.workspace) / str(other.splits[0].selected.path)
    strange.replace(Path(plan.workspace) / str(plan.splits[0].selected.path))
    with pytest.raises(IncompleteError, match="row_index is not ascending within"):
        verify_run(plan)


def test_ids_are_checked_only_in_the_rows_that_are_read(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    columns = {"text": ["a", "b", "c", "d"], "key": ["x", "x", "y", "z"], "n": [1, 2, 3, 4]}
    path = write_parquet(tmp_path / "ids" / "train.parquet", columns)
    dataset = {"path": str(path), "id_field": "key"}
    set_up(make_spec(dataset={**dataset, "where": "n > 1"}))
    set_up(make_spec(dataset={**dataset, "skip_rows": 1}))
    with pytest.raises(InputError, match=r"Duplicate id: .* row 0 of .* and in row 1 of"):
        set_up(make_spec(dataset={**dataset, "where": "n < 4"}))


def test_ids_of_staged_rows_are_checked_only_where_they_are_read(
    make_spec: SpecMaker, tmp_path: Path
) -> None:
    path = tmp_path / "ids" / "train.jsonl"
    path.parent.mkdir()
    path.write_text("".join(f'{{"text": "t", "key": "{key}"}}\n' for key in "xxyz"))
    dataset = {"source": "jsonl", "path": str(path), "id_field": "key"}
    set_up(make_spec(dataset={**dataset, "skip_rows": 1}))
    with pytest.raises(InputError, match="Duplicate id"):
        set_up(make_spec(dataset=dataset))
    with pytest.raises(InputError, match="Duplicate id"):
        set_up(make_spec(dataset={**dataset, "where": "key <> 'z'"}))
