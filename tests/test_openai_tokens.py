from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken import Encoding

from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.layout import Layout
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import (
    EstimatedCounter,
    TiktokenCounter,
    as_the_run_began,
    make_counter,
)
from tests.test_openai_encodings import Store, storing

MERGES = [b"th", b"the", b" the", b"an", b"and", b" and", b"in", b"ing", "é".encode()]
PATTERN = r"'s| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"


def ranks() -> dict[bytes, int]:
    tokens = [*(bytes([i]) for i in range(256)), *MERGES]
    return {token: rank for rank, token in enumerate(tokens)}


def tiny() -> Encoding:
    """A byte-pair encoding with nine merges, beside the 256 bytes."""
    return Encoding(
        name="tiny", pat_str=PATTERN, mergeable_ranks=ranks(), special_tokens={"<|end|>": 300}
    )


def test_tiktoken_counter_counts_as_the_encoding_does() -> None:
    counter = TiktokenCounter(tiny())
    assert counter.count(["the", "the and the", "x", "<|end|>"]).tolist() == [1, 3, 1, 7]
    assert counter.is_exact
    assert counter.method == "counted with tiktoken, encoding tiny"


@given(text=st.text(alphabet="the andé€𝄞\n", max_size=40), limit=st.integers(1, 12))
def test_cut_is_a_beginning_within_the_limit(text: str, limit: int) -> None:
    counter = TiktokenCounter(tiny())
    kept = counter.cut(text, limit)
    assert text.startswith(kept)
    assert int(counter.count([kept])[0]) <= limit
    if int(counter.count([text])[0]) <= limit:
        assert kept == text


@given(text=st.text(max_size=40))
def test_estimate_is_a_quarter_of_the_bytes_and_never_nothing(text: str) -> None:
    counter = EstimatedCounter("why")
    (count,) = counter.count([text]).tolist()
    assert count == max(1, -(-len(text.encode()) // 4))
    assert text.startswith(counter.cut(text, 3))


def test_make_counter_without_the_file_estimates_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    counter = make_counter(ModelSection(), "text-embedding-3-small", tmp_path / "ws")
    assert not counter.is_exact
    assert counter.method == (
        "estimated as UTF-8 bytes / 4 (tiktoken's file of cl100k_base is neither in "
        f"{tmp_path} nor in {tmp_path / 'ws' / 'cache' / 'tiktoken'})"
    )


def test_make_counter_of_a_model_that_tiktoken_does_not_know_estimates(tmp_path: Path) -> None:
    counter = make_counter(ModelSection(), "BAAI/bge-small", tmp_path, may_fetch=True)
    assert "tiktoken does not know BAAI/bge-small" in counter.method


def test_make_counter_with_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.encoding=cl99k; known: .*cl100k_base"):
        make_counter(ModelSection(encoding="cl99k"), "any", tmp_path)


# tiktoken finds encodings of others in the namespace package tiktoken_ext. That of this one is a
# file at an address that the test names, which tiktoken caches like its own.
_PLUGIN = f"""
import os
from tiktoken.load import load_tiktoken_bpe

def tiny():
    ranks = load_tiktoken_bpe(os.environ["TINY"])
    facts = {{"name": "tiny", "pat_str": {PATTERN!r}, "special_tokens": {{}}}}
    return {{**facts, "mergeable_ranks": ranks}}

ENCODING_CONSTRUCTORS = {{"tiny": tiny}}
"""
# Words: workspace, whether it may fetch, and the checksum of the file, if chatspace is to know it.
_COUNT = """
import json, os, sys
from pathlib import Path
from chatspace.openai_embed.encodings import EncodingFile
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import make_counter
workspace, may_fetch, *sha256 = sys.argv[1:]
counter = make_counter(
    ModelSection(encoding="tiny"), "any", Path(workspace), may_fetch=may_fetch == "True",
    files={"tiny": [EncodingFile(url=os.environ["TINY"], sha256=s)] for s in sha256},
)
print(json.dumps([counter.method, counter.is_exact, counter.count(["the and the"]).tolist()]))
"""
LINES = b"\n".join(base64.b64encode(token) + b" %d" % rank for token, rank in ranks().items())
COUNTED = ["counted with tiktoken, encoding tiny", True, [3]]


def count_elsewhere(folder: Path, url: str, *words: str) -> Any:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{folder / 'ext'}:{Path(__file__).parents[1]}",
        "TIKTOKEN_CACHE_DIR": str(folder / "cache"),
        "TINY": url,
    }
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, str(folder / "ws"), *words],
        env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def with_plugin(tmp_path: Path) -> Path:
    plugin = tmp_path / "ext" / "tiktoken_ext" / "tiny_encoding.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(_PLUGIN)
    (tmp_path / "cache").mkdir()
    return tmp_path


def test_make_counter_uses_tiktokens_cache_and_estimates_without_it(with_plugin: Path) -> None:
    url = "http://127.0.0.1:9/tiny.tiktoken"
    method, is_exact, counts = count_elsewhere(with_plugin, url, "False")
    assert (is_exact, counts) == (False, [3])
    assert method.startswith("estimated as UTF-8 bytes / 4 (tiktoken cannot load tiny: ")
    name = hashlib.sha1(url.encode()).hexdigest()
    (with_plugin / "cache" / name).write_bytes(LINES)
    assert count_elsewhere(with_plugin, url, "False") == COUNTED


def test_make_counter_fetches_only_where_it_may_and_finds_it_again(with_plugin: Path) -> None:
    with storing(Store(content=LINES)) as store:
        known = (store.url, "False", hashlib.sha256(LINES).hexdigest())
        may = (store.url, "True", known[2])
        method, is_exact, _ = count_elsewhere(with_plugin, *known)
        assert "neither in" in method and not is_exact and store.asked == 0
        assert count_elsewhere(with_plugin, *may) == COUNTED
        assert store.asked == 1
    assert count_elsewhere(with_plugin, *known) == COUNTED  # nobody serves it any more
    damaged = with_plugin / "cache" / hashlib.sha1(store.url.encode()).hexdigest()
    damaged.write_bytes(LINES[:50])  # tiktoken alone would remove it and ask the network
    assert count_elsewhere(with_plugin, *known) == COUNTED
    assert damaged.exists()


def test_tasks_that_begin_together_count_as_one_of_them(tmp_path: Path) -> None:
    run = Layout(tmp_path).run("r")
    counters = [TiktokenCounter(tiny()), EstimatedCounter("why")] * 8
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(as_the_run_began, counter, run) for counter in counters]
    found = [f.exception() or f.result() for f in futures]
    noted = json.loads(run.token_count.read_text())["is_exact"]
    for counter, answer in zip(counters, found, strict=True):
        if noted and not counter.is_exact:
            assert isinstance(answer, UnfitEnvironmentError)
        else:
            assert answer.is_exact == noted


def test_run_that_began_with_an_estimate_goes_on_with_it(tmp_path: Path) -> None:
    run = Layout(tmp_path).run("r-00000000")
    exact, estimated = TiktokenCounter(tiny()), EstimatedCounter("no file")
    assert as_the_run_began(estimated, run) is estimated
    later = as_the_run_began(exact, run)
    assert (later.is_exact, later.cut("a" * 100, 3)) == (False, "a" * 12)
    assert as_the_run_began(estimated, run) is estimated


def test_run_that_began_with_an_exact_count_is_not_estimated(tmp_path: Path) -> None:
    run = Layout(tmp_path).run("r-00000000")
    exact = TiktokenCounter(tiny())
    for _ in range(2):
        assert as_the_run_began(exact, run) is exact
    with pytest.raises(UnfitEnvironmentError, match="those counted with tiktoken"):
        as_the_run_began(EstimatedCounter("no file"), run)
