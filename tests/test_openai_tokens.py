from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiktoken import Encoding

from chatspace.errors import SpecError
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import EstimatedCounter, TiktokenCounter, make_counter

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
    counter = make_counter(ModelSection(), "text-embedding-3-small")
    assert not counter.is_exact
    assert counter.method == (
        f"estimated as UTF-8 bytes / 4 (tiktoken's file of cl100k_base is not in {tmp_path})"
    )


def test_make_counter_of_a_model_that_tiktoken_does_not_know_estimates() -> None:
    counter = make_counter(ModelSection(), "BAAI/bge-small")
    assert "tiktoken does not know BAAI/bge-small" in counter.method


def test_make_counter_with_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(SpecError, match=r"model\.encoding=cl99k; known: .*cl100k_base"):
        make_counter(ModelSection(encoding="cl99k"), "any")


# tiktoken finds encodings of others in the namespace package tiktoken_ext. That of this one is a
# file at an address where nobody listens, which tiktoken caches like its own.
_PLUGIN = f"""
from tiktoken.load import load_tiktoken_bpe

def tiny():
    ranks = load_tiktoken_bpe("http://127.0.0.1:9/tiny.tiktoken")
    facts = {{"name": "tiny", "pat_str": {PATTERN!r}, "special_tokens": {{}}}}
    return {{**facts, "mergeable_ranks": ranks}}

ENCODING_CONSTRUCTORS = {{"tiny": tiny}}
"""
_COUNT = """
import json, sys
from chatspace.openai_embed.spec import ModelSection
from chatspace.openai_embed.tokens import make_counter
counter = make_counter(ModelSection(encoding="tiny"), "any")
print(json.dumps([counter.method, counter.is_exact, counter.count(["the and the"]).tolist()]))
"""


def count_elsewhere(folder: Path) -> Any:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{folder / 'ext'}:{Path(__file__).parents[1]}",
        "TIKTOKEN_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", _COUNT], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_make_counter_uses_tiktokens_cache_and_estimates_without_it(tmp_path: Path) -> None:
    plugin = tmp_path / "ext" / "tiktoken_ext" / "tiny_encoding.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text(_PLUGIN)
    (tmp_path / "cache").mkdir()
    method, is_exact, counts = count_elsewhere(tmp_path)
    assert (is_exact, counts) == (False, [3])
    assert method.startswith("estimated as UTF-8 bytes / 4 (tiktoken cannot load tiny: ")
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks().items()]
    name = hashlib.sha1(b"http://127.0.0.1:9/tiny.tiktoken").hexdigest()
    (tmp_path / "cache" / name).write_bytes(b"\n".join(lines))
    assert count_elsewhere(tmp_path) == ["counted with tiktoken, encoding tiny", True, [3]]
