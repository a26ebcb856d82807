"""Turns of a conversation, in the shapes that datasets give them, and what is embedded of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from chatspace.spec.dataset import Conversation

_ASSISTANT_ROLES = frozenset({"assistant", "model"})
_USER_ROLES = frozenset({"user"})
# ShareGPT's names. Only under its own key: a `role` of gpt may be anything.
_SHAREGPT_ASSISTANT = _ASSISTANT_ROLES | {"gpt"}
_SHAREGPT_USER = _USER_ROLES | {"human"}


def first_assistant_text(conversation: Any) -> str | None:
    """Returns the content of the first turn of the assistant that is not blank, None without one.

    The assistant is `role: assistant` or `role: model`, in ShareGPT's form also `from: gpt`; case
    and surrounding blanks do not matter. Content is text, or a list of parts: its text parts are
    joined by line breaks.

    Args:
        conversation: a list of turns, a struct of lists (`{role: [...], content: [...]}`), or
            either as JSON text.
    """
    turns = (turn for turn in _turns(conversation) if _is_assistant(turn))
    return next((text for turn in turns if (text := _content(turn))), None)


def last_user_text(conversation: Any) -> str | None:
    """Returns the content of the last turn of the user that is not blank, None without one.

    The user is `role: user`, in ShareGPT's form also `from: human`.

    Args:
        conversation: as in `first_assistant_text`.
    """
    turns = [turn for turn in _turns(conversation) if _is_user(turn)]
    return next((text for turn in reversed(turns) if (text := _content(turn))), None)


def all_turns_text(conversation: Any) -> str | None:
    """Returns every turn that is not blank as `role: content`, blank lines between, or None.

    Roles are lower-cased; ShareGPT's human and gpt are written as user and assistant, so that a
    conversation gives the same text in either form. A turn without a role is its content alone.

    Args:
        conversation: as in `first_assistant_text`.
    """
    parts = []
    for turn in _turns(conversation):
        text = _content(turn)
        if text:
            role = _role(turn)
            parts.append(f"{role}: {text}" if role else text)
    return "\n\n".join(parts) or None


# What is embedded of a conversation, and why a row without it is skipped.
RENDERINGS: dict[Conversation, tuple[Callable[[Any], str | None], str]] = {
    "first_assistant": (first_assistant_text, "no_assistant_turn"),
    "all_turns": (all_turns_text, "no_turns"),
    "last_user": (last_user_text, "no_user_turn"),
}


def is_turns(conversation: Any) -> bool:
    """Whether a value has the shape of a conversation: a list without turns, or with one of ours.

    A turn has `content` or `value`. What the turns say, and whether they say anything, is not
    looked at.
    """
    listed = _listed(conversation)
    if listed is None:
        return False
    turns = [turn for turn in listed if isinstance(turn, dict)]
    return not listed or any({"content", "value"} & turn.keys() for turn in turns)


def _turns(conversation: Any) -> Iterator[dict[str, Any]]:
    yield from (turn for turn in _listed(conversation) or () if isinstance(turn, dict))


def _listed(conversation: Any) -> list[Any] | None:
    """Returns the items of a conversation in any of its forms, None where it is in none."""
    if isinstance(conversation, str):
        try:
            conversation = json.loads(conversation)
        except (ValueError, RecursionError):
            return None
    if isinstance(conversation, dict):
        return _transposed(conversation)
    return conversation if isinstance(conversation, list) else None


def _transposed(columns: dict[str, Any]) -> list[dict[str, Any]] | None:
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    if not lists:
        return None
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=False)]


def _is_assistant(turn: dict[str, Any]) -> bool:
    return _has_role(turn, _ASSISTANT_ROLES, _SHAREGPT_ASSISTANT)


def _is_user(turn: dict[str, Any]) -> bool:
    return _has_role(turn, _USER_ROLES, _SHAREGPT_USER)


def _has_role(turn: dict[str, Any], roles: frozenset[str], sharegpt: frozenset[str]) -> bool:
    return any(
        isinstance(role := turn.get(key), str) and role.strip().lower() in known
        for key, known in (("role", roles), ("from", sharegpt))
    )


def _role(turn: dict[str, Any]) -> str:
    if _is_assistant(turn):
        return "assistant"
    if _is_user(turn):
        return "user"
    named = (turn.get(key) for key in ("role", "from"))
    return next((role.strip().lower() for role in named if isinstance(role, str)), "")


def _content(turn: dict[str, Any]) -> str | None:
    """Returns the text of a turn, None where it is blank or no text."""
    content = turn.get("content")
    text = _text(turn.get("value") if content is None else content)
    return text if text and not text.isspace() else None


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
