from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

from chatspace.jobs.local import _begin_log, _last_line, _Pool
from tests.plans import plan_of


def test_pool_gives_each_worker_the_gpu_with_the_fewest() -> None:
    pool = _Pool(plan_of(), None, ["0", "1"], threads_each=1)
    given = []
    for ends in (None, None, "1", "0", None):
        if ends is not None:
            pool.running = [w for w in pool.running if w.gpu != ends]
        gpu = pool._free_gpu()
        given.append(gpu)
        pool.running.append(SimpleNamespace(gpu=gpu))  # type: ignore[arg-type]
    assert given == ["0", "1", "1", "0", "0"]


def test_begin_log_keeps_what_earlier_executions_and_their_orphans_write(tmp_path: Path) -> None:
    path = tmp_path / "train-00000.log"
    first, _ = _begin_log(path, "train slice 0")
    first.write(b"chatspace: Input changed\n")
    first.flush()
    second, start = _begin_log(path, "train slice 0")
    assert _last_line(path, start) == "it wrote nothing."
    second.write(b"chatspace: No memory\n")
    second.flush()
    assert _last_line(path, start) == "chatspace: No memory"
    first.write(b"late\n")
    first.close()
    second.close()
    lines = path.read_text().splitlines()
    begins = re.compile(r"chatspace: \d{4}-\d\d-\d\dT\S+ train slice 0 begins on \S+")
    assert [bool(begins.fullmatch(line)) for line in lines] == [True, False, True, False, False]
    assert lines[1::2] == ["chatspace: Input changed", "chatspace: No memory"]
    assert lines[-1] == "late"


def test_pool_without_gpus_gives_none() -> None:
    assert _Pool(plan_of(), None, [], threads_each=1)._free_gpu() is None
