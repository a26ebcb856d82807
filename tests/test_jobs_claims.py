from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatspace.jobs.claims import Claims
from chatspace.plan.work import StopRequest
from chatspace.shards.records import ShardSpan

SPANS = [ShardSpan(index=i, row_start=i * 10, row_stop=i * 10 + 10) for i in range(6)]


@pytest.fixture
def claims(tmp_path: Path) -> Callable[..., Claims]:
    def make(attempt: str, **times: float) -> Claims:
        return Claims(tmp_path / "claims", attempt, **times)

    return make


def claimed_shards(folder: Path) -> dict[int, dict[str, Any]]:
    """What the claims say of their owners, by shard."""
    return {int(p.stem[6:]): json.loads(p.read_bytes()) for p in folder.glob("shard-*.json")}


def foreign(folder: Path, span: ShardSpan, **facts: object) -> Path:
    """Writes a claim of another machine, which nothing here can ask after."""
    path = folder / "claims" / f"shard-{span.index:05d}.json"
    path.parent.mkdir(exist_ok=True)
    owner = {"attempt": "7_0.r0", "host": "elsewhere", "pid": 1, "beat": "0", **facts}
    path.write_text(json.dumps(owner))
    return path


def test_take_of_a_free_shard_is_ours_until_released(claims: Callable[..., Claims]) -> None:
    one, other = claims("1_0.r0"), claims("2_0.r0")
    assert one.take(SPANS[0]) and not other.take(SPANS[0])
    one.release(SPANS[0])
    assert other.take(SPANS[0])
    other.close()


def test_take_of_an_earlier_attempts_shard_is_at_once(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    foreign(tmp_path, SPANS[0], attempt="7_3.r1")
    assert not claims("7_2.r2").take(SPANS[0])
    assert not claims("7_3.r1").take(SPANS[0])
    mine = claims("7_3.r2.lane1")
    assert mine.take(SPANS[0])
    assert claimed_shards(tmp_path / "claims")[0]["attempt"] == "7_3.r2.lane1"
    mine.close()


def test_take_of_a_dead_process_of_this_host_is_at_once(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from chatspace.jobs.claims import Claims;"
        "from tests.test_jobs_claims import SPANS;"
        "print(Claims(Path(sys.argv[1]), 'node-1').take(SPANS[0]))"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "claims")]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "True\n" and claimed_shards(tmp_path / "claims")[0]["host"] == platform.node()
    mine = claims("node-2")
    assert mine.take(SPANS[0])
    mine.close()


def test_take_of_a_silent_claim_waits_for_its_beat_by_our_own_clock(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    path = foreign(tmp_path, SPANS[0])
    os.utime(path, (0, 0))  # a node whose clock is wrong by decades is not dead for that
    mine = claims("8_0.r0", stale_s=0.3)
    assert not mine.take(SPANS[0])
    time.sleep(0.35)
    assert mine.take(SPANS[0])
    mine.close()


def test_take_of_a_torn_claim_is_possible_once_it_is_stale(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    foreign(tmp_path, SPANS[0]).write_bytes(b"")
    mine = claims("8_0.r0", stale_s=0.2)
    assert not mine.take(SPANS[0])
    time.sleep(0.25)
    assert mine.take(SPANS[0])
    mine.close()


def test_take_by_many_of_one_stale_claim_succeeds_once(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    for _ in range(20):
        foreign(tmp_path, SPANS[0])
        rivals = [claims(f"{i}_0.r0", stale_s=0.0) for i in range(2, 10)]
        start = threading.Barrier(len(rivals))
        won: list[int] = []

        def race(number: int, rival: Claims, start: threading.Barrier, won: list[int]) -> None:
            start.wait()
            if rival.take(SPANS[0]):
                won.append(number)

        threads = [
            threading.Thread(target=race, args=(i, rival, start, won))
            for i, rival in enumerate(rivals)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = claimed_shards(tmp_path / "claims")
        for rival in rivals:
            rival.close()
        assert won and held[0]["attempt"] in {f"{i + 2}_0.r0" for i in won}


def test_share_gives_each_shard_to_one_of_two_and_leaves_none(
    claims: Callable[..., Claims],
) -> None:
    done: set[int] = set()
    got: dict[str, list[int]] = {"1_0.r0": [], "2_0.r0": []}

    def work(name: str, spans: list[ShardSpan]) -> None:
        mine = claims(name, beat_s=0.05)
        for span in mine.share(spans, lambda s: s.index in done, StopRequest()):
            time.sleep(0.03)
            done.add(span.index)
            got[name].append(span.index)
            mine.release(span)
        mine.close()

    threads = [
        threading.Thread(target=work, args=("1_0.r0", SPANS)),
        threading.Thread(target=work, args=("2_0.r0", SPANS[3:] + SPANS[:3])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got["1_0.r0"] + got["2_0.r0"]) == [0, 1, 2, 3, 4, 5]
    assert got["1_0.r0"] and got["2_0.r0"]


def test_share_leaves_a_shard_to_a_living_owner_and_takes_that_of_a_dead_one(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    alive = claims("1_0.r0", beat_s=0.2)
    # Written by another process of this host, it would be known to be alive or dead at once.
    assert alive.take(SPANS[0])
    foreign(tmp_path, SPANS[1])
    mine = claims("2_0.r0", stale_s=2.5)
    given = [s.index for s in mine.share(SPANS[:3], lambda _: False, StopRequest())]
    assert given == [2, 1]
    assert [span.index for span in mine.left] == [0]
    alive.close()
    mine.close()


def test_share_ends_when_a_stop_is_requested_while_it_waits(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    foreign(tmp_path, SPANS[0])
    stop = StopRequest()
    threading.Timer(0.2, stop.request, [1.0]).start()
    started = time.monotonic()
    assert list(claims("2_0.r0").share(SPANS[:1], lambda _: False, stop)) == []
    assert time.monotonic() - started < 5


def test_release_of_a_claim_that_was_taken_over_leaves_the_new_one(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    slow, quick = claims("1_0.r0"), claims("1_0.r1")
    assert slow.take(SPANS[0]) and quick.take(SPANS[0])
    slow.release(SPANS[0])
    assert claimed_shards(tmp_path / "claims")[0]["attempt"] == "1_0.r1"
    quick.close()
    assert claimed_shards(tmp_path / "claims") == {}


def test_take_without_a_folder_to_write_to_claims_nothing_and_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    mine = Claims(tmp_path / "file" / "claims", "1_0.r0")
    assert mine.take(SPANS[0]) and mine.take(SPANS[1])
    assert [record.message.split(" folder=")[0] for record in caplog.records] == [
        "shards are not claimed"
    ]


def test_share_takes_what_an_owner_left_that_beat_and_then_died(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    path = foreign(tmp_path, SPANS[0])
    mine = claims("2_0.r0", stale_s=1.5)
    given = mine.share(SPANS[:2], lambda _: False, StopRequest())
    assert next(given).index == 1
    path.write_text(path.read_text().replace('"beat": "0"', '"beat": "9"'))  # its last one
    assert next(given).index == 0
    assert mine.left == []
    mine.close()


def test_take_of_a_claim_whose_file_went_stale_is_left_for_later(
    claims: Callable[..., Claims], tmp_path: Path
) -> None:
    path = foreign(tmp_path, SPANS[0])
    mine = claims("2_0.r0")

    def stale(span: ShardSpan) -> bool:
        raise OSError(errno.ESTALE, "Stale file handle", str(path))

    mine._displace = stale  # type: ignore[method-assign]  # what a network file system answers
    assert not mine.take(SPANS[0])
    assert mine.take(SPANS[1]) and not claims("3_0.r0").take(SPANS[1])
    mine.close()
