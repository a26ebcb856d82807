"""A place within a column: `meta.title`, `messages[].content`, `messages[-1].content`.

A name that stands in the data as it is wins, dots and all. `[]` means every item of a list, `[n]`
one of them, from the end where n is negative.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from chatspace.data.parquet import check_column, is_list, n_leaves, shown_type
from chatspace.errors import InputError
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

_INDEX = re.compile(r"\[(-?[0-9]{1,9})?\]")
_MAX_LISTED = 40
# The name of a key, the index of an item, or None for every item.
Step = str | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldPath:
    """A place within a column, found in a schema.

    Attributes:
        column: the top-level column.
        steps: from there down to the place.
        type: what stands at the place.
        leaves: indices of the Parquet columns that make it up.
    """

    column: str
    steps: tuple[Step, ...]
    type: pa.DataType
    leaves: range

    @property
    def is_each(self) -> bool:
        """Whether it names the items of a list."""
        return None in self.steps

    def pick(self, value: Any) -> list[Any]:
        """Returns what stands at this place in a column's value; nulls are passed over."""
        return list(_picked(value, self.steps))


def find_field(schema: pa.Schema, text: str, path: Path | str, key: str) -> FieldPath:
    """Returns the place that `text` names, which stands under `key` in the run spec.

    Raises:
        InputError: there is no such column, key or list, or two columns of that name.
    """
    names = [str(name) for name in schema.names]
    column = _longest(text, names)
    if column is None:
        # `a.b` where nothing is called a: the first part is what a person got wrong.
        check_column(schema, re.split(r"[.\[]", text)[0] or text, path, key)
        column = text
    type_ = check_column(schema, column, path, key)
    index = names.index(column)
    before = sum(n_leaves(schema.field(i).type) for i in range(index))
    walk = _Walk(whole=text, path=path, key=key, type=type_, first_leaf=before)
    return walk.down(column)


@dataclass(slots=True, kw_only=True)
class _Walk:
    """Goes down from a column to the place that a text names."""

    whole: str
    path: Path | str
    key: str
    type: pa.DataType
    first_leaf: int

    def down(self, column: str) -> FieldPath:
        steps: list[Step] = []
        at = len(column)
        while at < len(self.whole):
            match = _INDEX.match(self.whole, at)
            if match:
                steps.append(int(match[1]) if match[1] else None)
                self._into_list(at)
                at = match.end()
            else:
                start = at + self.whole.startswith(".", at)
                name = self._into_struct(start, at)
                steps.append(name)
                at = start + len(name)
        leaves = range(self.first_leaf, self.first_leaf + n_leaves(self.type))
        return FieldPath(column=column, steps=tuple(steps), type=self.type, leaves=leaves)

    def _into_list(self, at: int) -> None:
        if not is_list(self.type):
            raise self._error(f"{self.whole[:at]} is {shown_type(self.type)}, not a list")
        self.type = self.type.value_type

    def _into_struct(self, start: int, at: int) -> str:
        above, rest = self.whole[:at], self.whole[start:]
        if is_list(self.type):
            raise self._error(
                f"{above} is a list; every item is {above}[], the first {above}[0]", above, rest
            )
        if not pa.types.is_struct(self.type):
            raise self._error(f"{above} is {shown_type(self.type)} and has no fields")
        names = [field.name for field in self.type]
        name = _longest(rest, names)
        if name is None or (start == at and at):
            listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
            unknown = re.split(r"[.\[]", rest)[0]
            raise self._error(f"{above} has {listed}.{nearest(unknown, names)}")
        index = names.index(name)
        self.first_leaf += sum(n_leaves(self.type.field(i).type) for i in range(index))
        self.type = self.type.field(index).type
        return name

    def _error(self, why: str, above: str = "", rest: str = "") -> InputError:
        advice = f" Write {above}[].{rest}." if above else ""
        return InputError(
            f"Missing field: {self.key}={self.whole!r} in {shown(Path(self.path))}; "
            f"{why.rstrip('.')}{'' if why.endswith('?') else '.'}{advice}"
        )


def _longest(text: str, names: Sequence[str]) -> str | None:
    """Returns the longest name that `text` begins with as a whole part."""
    fitting = [n for n in names if text == n or (n and text.startswith((f"{n}.", f"{n}[")))]
    return max(fitting, key=len, default=None)


def _picked(value: Any, steps: Sequence[Step]) -> Iterator[Any]:
    if value is None:
        return
    if not steps:
        yield value
        return
    step, rest = steps[0], steps[1:]
    if step is None:
        for item in value:
            yield from _picked(item, rest)
    elif isinstance(step, str) or -len(value) <= step < len(value):
        yield from _picked(value[step], rest)
