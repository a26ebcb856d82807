"""What a model takes: the prompt before a row, how long a row may be, what makes its tokens."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules import Transformer

from chatspace.errors import ModelError
from chatspace.hf_embed.bucketing import padded
from chatspace.hf_embed.room import no_room, too_many_tokens
from chatspace.hf_embed.spec import ModelSection
from chatspace.hf_embed.tokens import (
    FastTokenizer,
    Features,
    LibraryTokenizer,
    Padding,
    RowTokenizer,
)

log = logging.getLogger(__name__)

NO_LIMIT = 2**40
_LONGEST_PROBE = 2**16

_PROBES = (
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "  two\n\nlines\t\u0000 and a NUL ",
    "naïve 北京 🙂👩‍👩‍👧 שלום עולם",
)


def resolve_prompt(model: Any, section: ModelSection, notes: list[str]) -> str:
    """Returns what is put before each text; without a word in the spec, the model's own default.

    Raises:
        ModelError: the model has no prompt of that name.
    """
    if section.prompt is not None:
        return section.prompt
    name = section.prompt_name or model.default_prompt_name
    if name is None:
        return ""
    if name not in model.prompts:
        known = ", ".join(sorted(model.prompts)) or "none"
        raise ModelError(
            f"Unknown prompt: model.prompt_name={name}; known: {known}. "
            f"Use one of them, or write the text itself as model.prompt."
        )
    prompt: str = model.prompts[name] or ""
    if not prompt:
        notes.append(f"Prompt {name} of this model is empty: nothing is put before the rows.")
    elif section.prompt_name is None:
        notes.append(f"The model's default prompt {name} is put before each row: {prompt!r}.")
    return prompt


def set_limit(model: Any, section: ModelSection) -> int:
    """Sets and returns the longest row or chunk in tokens, `NO_LIMIT` where nothing limits it.

    Raises:
        ModelError: the spec's limit is more than the model has positions for.
    """
    max_tokens = section.limit_tokens
    positions = position_limit(model)
    own = min(model.max_seq_length or NO_LIMIT, positions, NO_LIMIT)
    if max_tokens is None:
        limit = int(own)
    elif max_tokens > positions:
        raise too_many_tokens(section, positions)
    else:
        limit = max_tokens
    if limit < NO_LIMIT:
        model.max_seq_length = limit
    return limit


def position_limit(model: Any) -> int:
    """Returns how many positions a model has, `NO_LIMIT` where its config does not say."""
    config = getattr(model.transformers_model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return NO_LIMIT
    return positions - first_position(model)


def first_position(model: Any) -> int:
    """Returns the position of a row's first token.

    In the RoBERTa family positions begin after the index of the padding token.
    """
    for module in model.transformers_model.modules():
        table = getattr(module, "position_embeddings", None)
        if isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
            return table.padding_idx + 1
    return 0


def choose_tokenizer(model: Any, prompt: str, limit: int, notes: list[str]) -> RowTokenizer:
    """Returns the fast tokenizer where it gives what the library gives, else the library's own.

    Raises:
        ModelError: prompt and special tokens leave no room, or there is no padding token.
    """
    library = LibraryTokenizer(model, prompt=prompt)
    try:
        probes = library.preprocess(list(_PROBES))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(". ")[:300]
        raise ModelError(
            f"Tokenizer cannot make batches: {reason}. Set what it lacks in model.tokenizer_kwargs."
        ) from error
    fast = _fast_tokenizer(model, prompt, limit, probes)
    if fast is not None:
        room = fast.room - (fast.count("") - fast.n_special)
        if room < 1:
            raise no_room(limit, limit - room)
        if _agrees(fast, library, prompt, limit):
            return fast
    notes.append(
        "Rows are tokenised by sentence-transformers itself: right, but slower than need be."
    )
    return library


def _fast_tokenizer(model: Any, prompt: str, limit: int, probes: Features) -> FastTokenizer | None:
    first = model[0]
    tokenizer: Any = getattr(first, "tokenizer", None)
    if not isinstance(first, Transformer) or not getattr(tokenizer, "is_fast", False):
        return None
    first.unpad_inputs = False
    arguments = inspect.signature(first.model.forward).parameters
    keys = {"input_ids", "attention_mask", "token_type_ids"}
    padding = Padding(
        side=tokenizer.padding_side,
        pad_id=tokenizer.pad_token_id,
        type_ids="token_type_ids" in probes,
        takes_positions="position_ids" in arguments,
        first_position=first_position(model),
        extra={key: value for key, value in probes.items() if key not in keys},
    )
    try:
        return FastTokenizer(tokenizer, prompt=prompt, max_tokens=limit, padding=padding)
    except ValueError as error:
        log.debug("no fast tokenizer reason=%s", error)
        return None


def _agrees(fast: FastTokenizer, library: LibraryTokenizer, prompt: str, limit: int) -> bool:
    """Returns whether both make the same features of texts that are short, odd, and too long."""
    texts = list(_PROBES)
    if limit <= _LONGEST_PROBE:
        texts.append("so many words " * limit)
    expected = library.preprocess(texts)
    tokens = fast.tokenize(texts, check=lambda: None)
    found = tokens.features(padded(np.arange(len(texts)), int(tokens.lengths.max())))
    found.pop("position_ids", None)
    if found.keys() != expected.keys():
        return False
    return all(
        torch.equal(value, expected[key])
        if isinstance(value, torch.Tensor)
        else value == expected[key]
        for key, value in found.items()
    )
