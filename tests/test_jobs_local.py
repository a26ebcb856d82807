from __future__ import annotations

from types import SimpleNamespace

from chatspace.jobs.local import _Pool
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


def test_pool_without_gpus_gives_none() -> None:
    assert _Pool(plan_of(), None, [], threads_each=1)._free_gpu() is None
