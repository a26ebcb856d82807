"""Turns of a conversation, in the shapes that datasets give them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

_ASSISTANT_ROLES = frozenset({"assistant", "model"})
# ShareGPT's name for the assistant. Only under its own key: a `role` of gpt may be anything.
_SHAREGPT_ROLES = _ASSISTANT_ROLES | {"gpt"}


def first_assistant_text(conversation: Any) -> str | None:
    """Returns the content of the first turn of the assistant that is not blank, None without one.

    The assistant is `role: assistant` or `role: model`, in ShareGPT's form also `from: gpt`; case
    and surrounding blanks do not matter. Content is text, or a list of parts: its text parts are
    joined by line breaks.

    Args:
        conversation: a list of turns, a struct of lists (`{role: [...], content: [...]}`), or
            either as JSON text.
    """
    for turn in _turns(conversation):
        if not _is_assistant(turn):
            continue
        content = turn.get("content")
        text = _text(turn.get("value") if content is None else content)
        if text and not text.isspace():
            return text
    return None


def _turns(conversation: Any) -> Iterator[dict[str, Any]]:
    if isinstance(conversation, str):
        try:
            conversation = json.loads(conversation)
        except (ValueError, RecursionError):
            return
    if isinstance(conversation, dict):
        conversation = _transposed(conversation)
    if isinstance(conversation, list):
        yield from (turn for turn in conversation if isinstance(turn, dict))


def _transposed(columns: dict[str, Any]) -> list[dict[str, Any]]:
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=False)]


def _is_assistant(turn: dict[str, Any]) -> bool:
    for key, roles in (("role", _ASSISTANT_ROLES), ("from", _SHAREGPT_ROLES)):
        role = turn.get(key)
        if isinstance(role, str) and role.strip().lower() in roles:
            return True
    return False


def _text(content: Any) -> str | None:
    if isinstance(content, list):
        parts = (part if isinstance(part, str) else _part_text(part) for part in content)
        return "\n".join(part for part in parts if part)
    return content if isinstance(content, str) else None


def _part_text(part: Any) -> str | None:
    if not isinstance(part, dict) or part.get("type", "text") not in ("text", "output_text"):
        return None
    text = part.get("text")
    return text if isinstance(text, str) else None
