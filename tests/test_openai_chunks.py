"""Long rows cut into chunks for an endpoint: each an input of its own, paid for once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.chunking.chunker import Chunker
from chatspace.chunking.cutting import Chunk
from chatspace.errors import InputError, ModelError
from chatspace.jobs.gather import gather_run, verify_run
from chatspace.layout import Layout
from chatspace.openai_embed import estimate as estimate_module
from chatspace.openai_embed.chunking import make_chunker
from chatspace.openai_embed.estimate import dry_run, estimate_run
from chatspace.openai_embed.grouping import open_inputs
from chatspace.openai_embed.journal import Journal, Record
from chatspace.openai_embed.shard import MOST_TOLD, Shard
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import EstimatedCounter, TiktokenCounter, TokenCounter
from chatspace.plan.model import Plan
from chatspace.shards.records import ShardSpan
from tests.conftest import write_parquet
from tests.openai_runs import N_ROWS, plan_of, request_files, rows_of, run_here, start_task
from tests.openai_server import FakeOpenAI, Fault, n_tokens_of, vector_of
from tests.test_chunking_cutting import SENTENCES, TEXTS, uncovered
from tests.test_hf_embed_chunking import rows_of as prepared
from tests.test_openai_tokens import tiny

CHUNKS = {"long_text": "chunk", "chunk_tokens": 24, "overlap_tokens": 4}
COUNTERS: dict[str, Callable[[], TokenCounter]] = {
    "tiktoken": lambda: TiktokenCounter(tiny()),
    "estimate": lambda: EstimatedCounter("why"),
}


def chunker_of(counter: TokenCounter, **keys: Any) -> Chunker[int]:
    chunker = make_chunker(ModelSection.model_validate({**CHUNKS, **keys}), counter)
    assert chunker is not None
    return chunker


def chunks_of(chunker: Chunker[int], text: str) -> list[Chunk]:
    rows = chunker.split(prepared(text)).rows
    pairs = zip(rows.char_start.tolist(), rows.char_stop.tolist(), strict=True)
    return [Chunk(start, stop) for start, stop in pairs]


# Where tokens begin


@given(text=st.text(alphabet="the andé€𝄞\n", max_size=40))
def test_tiktoken_token_starts_are_the_characters_of_the_first_bytes(text: str) -> None:
    encoding = tiny()
    starts = TiktokenCounter(encoding).token_starts(text)
    _, expected = encoding.decode_with_offsets(encoding.encode_ordinary(text))
    assert starts.tolist() == expected


@given(text=st.text(max_size=40))
def test_estimate_has_a_token_for_every_four_bytes(text: str) -> None:
    starts = EstimatedCounter("why").token_starts(text)
    places = [at for at, character in enumerate(text) for _ in character.encode()]
    assert starts.tolist() == places[::4]


# Chunks


@pytest.mark.parametrize("name", COUNTERS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, overlap=st.integers(0, 6), times=st.sampled_from([1, 1, 30]))
def test_split_any_text_is_covered_in_order_within_the_budget(
    name: str, text: str, overlap: int, times: int
) -> None:
    text *= times
    counter = COUNTERS[name]()
    chunker = chunker_of(counter, overlap_tokens=overlap)
    split = chunker.split(prepared(text))
    chunks = chunks_of(chunker, text)
    assert split.rows.texts == [text[start:stop] for start, stop in chunks]
    assert uncovered(text, chunks) == ""
    assert all(a.start < b.start and a.stop < b.stop for a, b in pairwise(chunks))
    assert split.kept == counter.count(split.rows.texts).tolist()
    assert max(split.kept) <= 24 and not split.truncated.any()


def test_split_ends_chunks_with_sentences() -> None:
    rows = chunker_of(COUNTERS["estimate"]()).split(prepared(SENTENCES * 9)).rows
    assert len(rows.texts) > 5
    assert all(text[-1] in ".!?" for text in rows.texts[:-2])


# Runs


def long_rows(folder: Path, n_long: int = 5) -> dict[str, Any]:
    """Sixty rows, some of which are several chunks, and an empty one."""
    rows = [f"row {at} has a few words" for at in range(N_ROWS)]
    rows[2] = ""
    for at in range(0, 12 * n_long, 12):
        rows[at + 1] = " ".join(f"Sentence {k} of row {at}." for k in range(12))
    return {
        "source": "parquet",
        "path": str(write_parquet(folder / "long.parquet", {"text": rows})),
    }


def chunked_plan(folder: Path, server: FakeOpenAI, **sections: Any) -> Plan:
    model = {**CHUNKS, "document_vector": True}
    return plan_of(folder, server, dataset=long_rows(folder), model=model, **sections)


def check_chunks(plan: Plan, dim: int = 16) -> None:
    """Every chunk has the vector of its own text, and each row that of its chunks together."""
    rows = rows_of(plan)
    assert {row["row_index"] for row in rows} == set(range(N_ROWS)) - {2}
    assert sum(row["chunk_index"] > 0 for row in rows) >= 15
    for row in rows:
        np.testing.assert_allclose(row["embedding"], vector_of(row["text"], dim), atol=1e-6)
    counter = EstimatedCounter("why")
    for first in (row for row in rows if row["chunk_index"] == 0):
        own = [row for row in rows if row["row_index"] == first["row_index"]]
        n_tokens = counter.count([row["text"] for row in own])  # (n_chunks,)
        mean = np.average([row["embedding"] for row in own], axis=0, weights=n_tokens)
        expected = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(first["document_vector"], expected, atol=1e-5)
        assert [row["chunk_index"] for row in own] == list(range(len(own)))
        assert all(row["document_vector"] is None for row in own[1:])


@pytest.mark.parametrize("mode", ["direct", "batch"])
def test_run_embeds_each_chunk_once_and_accounts_for_each_row(
    server: FakeOpenAI, tmp_path: Path, mode: str
) -> None:
    plan = chunked_plan(tmp_path, server, requests={"mode": mode})
    run_here(plan)
    check_chunks(plan)
    assert set(server.served.values()) == {1} and request_files(plan) == []
    (gathered,) = gather_run(plan, verify=True)
    content = gathered.content
    assert (content["rows_total"], content["rows_embedded"]) == (N_ROWS, N_ROWS - 1)
    assert content["rows_skipped"] == {"empty_text": 1}
    assert content["chunks"] == sum(server.served.values()) == len(rows_of(plan))
    assert content["rows_truncated"] == 0
    assert verify_run(plan) == {"train": 3}


@pytest.mark.parametrize("mode", ["direct", "batch"])
def test_run_killed_among_its_chunks_pays_for_none_twice(
    server: FakeOpenAI, tmp_path: Path, mode: str
) -> None:
    server.delay_s, server.polls = 0.05, 10**9  # no batch ends before the task is killed
    plan = chunked_plan(tmp_path, server, requests={"mode": mode, "concurrency": 1})
    task = start_task(plan)
    end = time.monotonic() + 60
    while task.poll() is None and time.monotonic() < end:
        if len(server.served) >= 20 or len(server.batches) == 3:
            break
        time.sleep(0.01)
    os.kill(task.pid, signal.SIGKILL)
    assert task.wait(timeout=10) == -signal.SIGKILL
    server.delay_s, server.polls = 0.0, 1
    run_here(plan)
    check_chunks(plan)
    # What was under way when it died, one request of five, may have been made again.
    assert sum(n - 1 for n in server.served.values()) <= (5 if mode == "direct" else 0)


@pytest.mark.parametrize("mode", ["direct", "batch"])
def test_chunk_that_the_endpoint_refuses_is_cut_told_and_stored_as_it_was_sent(
    server: FakeOpenAI, tmp_path: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.limit = 15  # words; about twenty are in a chunk of 24 estimated tokens
    plan = chunked_plan(tmp_path, server, requests={"mode": mode})
    run_here(plan)
    (gathered,) = gather_run(plan, verify=True)
    assert gathered.content["rows_truncated"] == 5
    assert gathered.content["rows_embedded"] == N_ROWS - 1
    assert max(map(n_tokens_of, server.served)) <= 15
    check_chunks(plan)
    whole = pq.read_table(tmp_path / "long.parquet")["text"].to_pylist()
    for row in rows_of(plan):
        assert row["text"] == whole[row["row_index"]][row["char_start"] : row["char_stop"]]
    told = [text for text in caplog.messages if text.startswith("chunk cut row_index=")]
    assert "chunk cut row_index=1 chunk_index=0 chars=" in told[0]
    assert 5 <= len(told) == len(set(told)) < MOST_TOLD


def test_chunks_that_were_cut_before_their_task_was_killed_are_stored_as_they_were_sent(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.limit, server.delay_s = 15, 0.02
    plan = chunked_plan(tmp_path, server, requests={"concurrency": 1})
    journal = Layout(Path(plan.workspace)).run(plan.run_id).requests("train")
    journal /= "shard-00000.journal"
    task = start_task(plan)
    end = time.monotonic() + 60
    while task.poll() is None and time.monotonic() < end:
        if journal.exists() and b"n_chars" in journal.read_bytes():
            break
        time.sleep(0.005)
    os.kill(task.pid, signal.SIGKILL)
    assert task.wait(timeout=10) == -signal.SIGKILL
    assert b"n_chars" in journal.read_bytes()
    server.delay_s = 0.0
    run_here(plan)
    check_chunks(plan)


def test_chunks_that_are_cut_are_told_a_bounded_number_of_times(
    server: FakeOpenAI, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [" ".join(["word"] * 18)] * (MOST_TOLD + 5)
    data = write_parquet(tmp_path / "r.parquet", {"text": rows})
    server.limit = 15
    plan = plan_of(tmp_path, server, dataset={"path": str(data)}, model=CHUNKS)
    run_here(plan)
    told = [text for text in caplog.messages if text.startswith("chunk cut")]
    assert len(told) == MOST_TOLD + 1
    assert told[-1] == "chunk cut: further ones are counted in rows_truncated alone"


def test_chunks_of_estimated_tokens_want_a_limit(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server, model={"long_text": "chunk"})
    for attempt in (lambda: dry_run(plan), lambda: run_here(plan)):
        with pytest.raises(ModelError, match=r"No limit for chunks: .* Set model\.chunk_tokens"):
            attempt()
    assert server.paths == []


def test_shard_counts_a_row_when_its_last_chunk_is_there(tmp_path: Path) -> None:
    rows = chunker_of(COUNTERS["estimate"]()).split(prepared("short", SENTENCES * 4, "x")).rows
    n_chunks = np.bincount(rows.row).tolist()
    assert n_chunks[1] > 3
    journal = Journal(tmp_path / "s.journal", "plan", rows.texts, None)
    inputs = open_inputs(
        journal, rows.texts, model=ModelSection(), counter=EstimatedCounter("w"), row_index=[]
    )
    span = ShardSpan(index=0, row_start=0, row_stop=3)
    shard = Shard(span=span, rows=rows, journal=journal, inputs=inputs)
    assert shard.rows_left == 3
    last = len(rows.texts) - 1
    places = [[0, 1], *([at] for at in range(2, last - 1)), [last - 1, last]]
    done = [shard.add(Record(rows=at, vectors=np.ones((len(at), 2), np.float32))) for at in places]
    journal.close()
    assert done == [1, *[0] * (len(places) - 2), 2]
    assert shard.rows_left == 0


def test_run_with_an_answer_that_is_wrong_at_first_keeps_its_chunks_in_order(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.faults.extend([Fault("shuffle"), Fault("short"), Fault("drop_after")])
    plan = chunked_plan(tmp_path, server)
    run_here(plan)
    check_chunks(plan)


def test_dry_run_counts_chunks_and_what_overlaps(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = chunked_plan(tmp_path, server, spending={"sample_rows": 0})
    estimate = estimate_run(plan, EstimatedCounter("why"))
    lines = "\n".join(dry_run(plan))
    assert server.n_requests == 0
    run_here(plan)
    sent = [text for text, times in server.served.items() for _ in range(times)]
    assert estimate.n_inputs == len(sent)
    assert estimate.n_tokens == int(EstimatedCounter("why").count(sent).sum())
    assert estimate.too_long == 5
    assert f"about 5 rows above 24 tokens: cut into chunks, {len(sent)} inputs in all" in lines


def test_dry_run_that_asks_about_inputs_that_are_too_long_is_one_line(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    server.limit = 4
    plan = chunked_plan(tmp_path, server, spending={"ask_endpoint": True})
    with pytest.raises(InputError, match=r"Inputs too long: the endpoint says: .* leave --ask-end"):
        dry_run(plan)


def test_dry_run_of_several_batches_a_shard_says_their_days(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = chunked_plan(tmp_path, server, requests={"mode": "batch"})
    assert "up to 24 hours, which" in "\n".join(dry_run(plan))
    monkeypatch.setattr(estimate_module, "MAX_BATCH_INPUTS", 20)
    assert "up to 48 hours: 6 batches, a day for each" in "\n".join(dry_run(plan))
    one = chunked_plan(tmp_path, server, requests={"mode": "batch", "max_batches": 1})
    assert "up to 144 hours: 6 batches" in "\n".join(dry_run(one))


def test_dry_run_leaves_out_what_is_skipped(server: FakeOpenAI, tmp_path: Path) -> None:
    spending = {"sample_rows": 0}
    model = {"on_too_long": "skip", "max_tokens": 24}
    common: dict[str, Any] = {"dataset": long_rows(tmp_path), "spending": spending}
    skipped = estimate_run(plan_of(tmp_path, server, model=model, **common), EstimatedCounter("w"))
    model["on_too_long"] = "truncate"
    cut = estimate_run(plan_of(tmp_path, server, model=model, **common), EstimatedCounter("w"))
    assert (skipped.n_inputs, cut.n_inputs) == (N_ROWS - 6, N_ROWS - 1)
    assert cut.n_tokens - skipped.n_tokens == 5 * 24
