"""Vectors of questions, in the space of a run: its model, its settings, its cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from chatspace.hf_embed.resolve import fingerprint_files, local_folder
from chatspace.hf_embed.spec import EncodeSection
from chatspace.hf_embed.work import pinned_model, prepare_process
from chatspace.plan.model import Plan

if TYPE_CHECKING:
    from chatspace.hf_embed.encoder import FloatArray


def embed_queries(
    plan: Plan, texts: Sequence[str], prompt_name: str | None = None
) -> tuple[FloatArray, list[str]]:
    """Returns the vectors of some texts as the run would give them, and what to know of them.

    The device is what this machine has; the dtype is the run's.

    Args:
        plan: the run.
        texts: none of them empty.
        prompt_name: the model's prompt that is put before them [what the run put before its rows].

    Returns:
        Vectors, (n_texts, dim), float32; notes, a line each.

    Raises:
        ModelError: the model cannot be loaded, or has no such prompt.
    """
    prepare_process(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    from chatspace.hf_embed.loading import load_encoder
    from chatspace.hf_embed.truncation import truncate

    model = pinned_model(plan).model_copy(update={"device": "auto"})
    if prompt_name is not None:
        model = model.model_copy(update={"prompt": None, "prompt_name": prompt_name})
    encode = EncodeSection.model_validate(plan.spec["encode"])
    # One text needs no compiled model, which takes minutes to make.
    encode = encode.model_copy(update={"compile": False, "compile_mode": None})
    encoder = load_encoder(model, encode, path=plan.model.get("path"))
    try:
        truncate(encoder, plan.spec["output"].get("truncate_dim"))
        limit = encoder.max_tokens
        long = [text for text in texts if limit and encoder.tokenizer.count(text) > limit]
        notes = [note for note in encoder.notes if prompt_name and note.startswith("Prompt")]
        notes += [f"Text cut to {limit} tokens, the limit of the model." for _ in long[:1]]
        return encoder.embed(texts), [*_changes(plan), *notes]
    finally:
        encoder.close()


def _changes(plan: Plan) -> list[str]:
    """Returns a line if the model's files are not those that made the run's vectors."""
    recorded = plan.model["fingerprint"].get("files")
    folder = local_folder(plan.model["path"]) if plan.model.get("path") else None
    if not recorded or folder is None or fingerprint_files(folder) == recorded:
        return []
    return [f"The files in {folder} are not those that made this run: scores may mean nothing."]
