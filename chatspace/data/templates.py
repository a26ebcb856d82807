"""Texts made from a row's columns by a Jinja template that the run spec holds.

The template is sandboxed and gives the same text for the same row everywhere: what draws at random
is taken out, and what would print as an address in memory is refused. Null prints nothing.
`row["my column"]` is a column whose name is no word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chatspace.errors import SpecError
from chatspace.spec.document import shown
from chatspace.spec.problems import nearest

_ROW = "row"
_PRINTED = (str, int, float, list, tuple, dict, Decimal, date, time, timedelta, StrictUndefined)
_MAX_LISTED = 40
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-f]+>")


class UnfitRow(Exception):
    """A template fails on a row; the message says why and names the variable."""


class _Environment(ImmutableSandboxedEnvironment):
    """Reads `turn.items` as the key where a turn has one, not as Python's method."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


@lru_cache(maxsize=8)
def row_template(source: str) -> RowTemplate:
    """Returns a template that is ready to render.

    Raises:
        SpecError: the syntax is wrong, or a filter or test is unknown.
    """
    return RowTemplate(source)


class RowTemplate:
    """A template over the columns of a row."""

    def __init__(self, source: str) -> None:
        environment = _Environment(
            undefined=StrictUndefined, autoescape=False, finalize=_printable, cache_size=0
        )
        del environment.globals["lipsum"], environment.filters["random"]
        try:
            tree = environment.parse(source)
            self._template: Template = environment.from_string(source)
        except TemplateSyntaxError as error:
            lines = source.splitlines()
            line = lines[error.lineno - 1].strip() if error.lineno <= len(lines) else ""
            raise SpecError(
                f"Invalid template: dataset.template, line {error.lineno}: {shown(line, 60)}; "
                f"{_one_line(error)}. Correct it."
            ) from error
        self._asked = frozenset(meta.find_undeclared_variables(tree))
        self._globals = frozenset(environment.globals)
        self._of_row, self._is_whole_row = _of_row(tree)

    def columns(self, names: Sequence[str], place: str) -> list[str]:
        """Returns those of a file's columns that the template needs, in the file's order.

        Args:
            names: the columns.
            place: the file, as errors name it.

        Raises:
            SpecError: a variable is no column.
        """
        known = set(names)
        asked = {name for name in self._asked if name in known or name not in self._globals}
        if _ROW in asked - known:
            asked = (asked - {_ROW}) | (known if self._is_whole_row else self._of_row)
        unknown = sorted(asked - known)
        if unknown:
            listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
            advice = nearest(unknown[0], names) or " Use those."
            raise SpecError(
                f"Unknown variable: dataset.template uses {unknown[0]}; {place} has {listed}."
                f"{advice}"
            )
        if not asked:
            raise SpecError(
                "Same text for every row: dataset.template uses no column; "
                f"{place} has {', '.join(names[:_MAX_LISTED])}. Use one, such as "
                f"{{{{ {names[0] if names else 'text'} }}}}."
            )
        return [name for name in names if name in asked]

    def render(self, values: Mapping[str, Any]) -> str:
        """Returns the text of a row.

        Raises:
            UnfitRow: a field of a column is missing, or an operation does not fit its value.
        """
        row = {} if _ROW in values else {_ROW: values}
        try:
            text = self._template.render({**values, **row})
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UnfitRow(_one_line(error)) from error
        except (AttributeError, RecursionError, OverflowError, MemoryError) as error:
            raise UnfitRow(_one_line(error)) from error
        # `~` joins what no finalizer sees. A row may itself be about such things.
        address = _ADDRESS.search(text)
        if address and not any(_ADDRESS.search(str(value)) for value in values.values()):
            raise UnfitRow(f"{address[0][:80]} is no text, and another one in every process")
        return text


def _printable(value: Any) -> Any:
    """Returns what is printed for a value; refuses what prints as an address or as Python."""
    if value is None:
        return ""
    if isinstance(value, _PRINTED):
        return value
    if callable(value):
        name = getattr(value, "__name__", "it")
        raise TypeError(f"{name} is a method; call it: {name}()")
    raise TypeError(f"{type(value).__name__} is not text; join it, loop over it or decode it")


def _of_row(tree: nodes.Template) -> tuple[frozenset[str], bool]:
    """Returns the columns that are asked of `row` by name, and whether it is used in other ways."""
    named: set[str] = set()
    n_named = 0
    found: list[tuple[nodes.Node, Any]] = [
        *((node.node, node.attr) for node in tree.find_all(nodes.Getattr)),
        *((node.node, getattr(node.arg, "value", None)) for node in tree.find_all(nodes.Getitem)),
    ]
    for of, name in found:
        if isinstance(of, nodes.Name) and of.name == _ROW and isinstance(name, str):
            named.add(name)
            n_named += 1
    n_all = sum(name.name == _ROW for name in tree.find_all(nodes.Name))
    return frozenset(named), n_all > n_named


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
