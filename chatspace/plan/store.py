"""Reading and writing `plan.json`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from chatspace.atomic import atomic_write_text
from chatspace.errors import InputError
from chatspace.plan.model import Plan

_ADAPTER: TypeAdapter[Plan] = TypeAdapter(Plan)


def save_plan(plan: Plan, path: Path) -> None:
    """Writes the plan by rename."""
    text = json.dumps(asdict(plan), ensure_ascii=False, indent=1) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, text)


def load_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        InputError: there is no plan at `path`, or it cannot be read.
    """
    try:
        return _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"No plan: {path} does not exist. Run `chatspace setup SPEC` first."
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"Plan cannot be read: {path} {'.'.join(map(str, first['loc']))}: {first['msg']}. "
            f"Run `chatspace setup SPEC` again."
        ) from None
