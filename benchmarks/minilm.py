"""The benchmarks' model: all-MiniLM-L6-v2 as published, with nothing left that cuts rows early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from corpora import LIMIT, Count
from tokenizers import Tokenizer

from chatspace.demo.model import packaged_model


def prepared_model(folder: Path) -> Path:
    """Copies the model and has every engine cut rows at the 512 positions that it has.

    As published, three files name three limits (128, 256 and 512 tokens), and engines differ in
    which one they read.
    """
    target = folder / "all-MiniLM-L6-v2"
    shutil.copytree(packaged_model(), target)
    _update(target / "sentence_bert_config.json", max_seq_length=LIMIT)
    _update(target / "tokenizer_config.json", model_max_length=LIMIT)
    _update(target / "tokenizer.json", truncation=None, padding=None)
    return target


def token_count(model: Path) -> Count:
    """Returns what counts the tokens of a text, special tokens counted, nothing cut."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text).ids)


def _update(path: Path, **values: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | values), encoding="utf-8")
