"""Whether a limit leaves room for text, as far as the files of a model say it without loading it.

A limit is refused here only if the task would refuse it. What these files do not say (positions
that a model's code knows, a tokenizer that is made when it is loaded) is seen by the task.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatspace.atomic import read_json_object
from chatspace.errors import ModelError
from chatspace.hf_embed.spec import ModelSection

_MOST_SPECIAL = 16  # tokens that are put around a text, beside the prompt


def refuse_impossible_limit(section: ModelSection, folder: Path) -> None:
    """Refuses a limit of the spec that the model cannot have, or that leaves no room for text.

    Args:
        section: what the spec says of the model.
        folder: the model's files, or as many of them as are here.

    Raises:
        ModelError: the limit is above the model's positions, or prompt and special tokens fill it.
    """
    limit = section.limit_tokens
    part = _encoder_folder(folder)
    if limit is None or part is None:
        return
    positions = read_json_object(part / "config.json").get("max_position_embeddings")
    is_changed = {"config", "max_position_embeddings"} & section.model_kwargs.keys()
    if isinstance(positions, int) and 0 < positions < limit and not is_changed:
        raise too_many_tokens(section, positions)
    prompt = _prompt(section, folder)
    # Reading a large vocabulary takes a second; a text has hardly more tokens than bytes.
    if section.tokenizer_kwargs or prompt is None or limit > len(prompt.encode()) + _MOST_SPECIAL:
        return
    taken = _tokens_around(part / "tokenizer.json", prompt)
    if taken is not None and limit <= taken:
        raise no_room(limit, taken)


def too_many_tokens(section: ModelSection, positions: int) -> ModelError:
    """Returns the error for a limit above the positions that a model has."""
    key = "model.chunk_tokens" if section.chunk_tokens else "model.max_tokens"
    return ModelError(
        f"Too many tokens: {key}={section.limit_tokens}; the model has {positions} positions. "
        f"Set {key} to {positions} or less, or leave it out."
    )


def no_room(limit: int, taken: int) -> ModelError:
    """Returns the error for a limit that prompt and special tokens fill."""
    return ModelError(
        f"No room for text: the limit is {limit} tokens; prompt and special tokens take {taken}. "
        "Raise model.max_tokens, or model.chunk_tokens, or shorten the prompt."
    )


def _encoder_folder(folder: Path) -> Path | None:
    """Returns where the transformer's own files lie, None where the model is none."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        first = modules[0]
        is_transformer = str(first["type"]).endswith("Transformer")
        return folder / first["path"] if is_transformer else None
    except FileNotFoundError:
        return folder
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _prompt(section: ModelSection, folder: Path) -> str | None:
    """Returns what is put before each text, None where that cannot be told."""
    if section.prompt is not None:
        return section.prompt
    settings = read_json_object(folder / "config_sentence_transformers.json")
    name = section.prompt_name or settings.get("default_prompt_name")
    if name is None:
        return ""
    prompts: Any = settings.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) else None
    return prompt if isinstance(prompt, str) else None


def _tokens_around(path: Path, prompt: str) -> int | None:
    """Returns how many tokens a text without any has, None where the file does not say it."""
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        special: int = tokenizer.num_special_tokens_to_add(False)
        return special + len(tokenizer.encode(prompt, add_special_tokens=False).ids)
    except Exception:  # the library raises nothing narrower; the task tells what is damaged
        return None
