"""YAML as a person wrote it: plain values, and the line that each key stands on.

Scalars follow the core schema of YAML 1.2, not PyYAML's 1.1: `02:00:00` and `no` are text, `1e-3`
is a number.
Not covered: tags (`!x`), merge keys (`<<`), several documents in one file.

Source: https://yaml.org/spec/1.2.2/#103-core-schema
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatspace.errors import SpecError

Key = tuple[str | int, ...]

_NULL = re.compile(r"^(null|Null|NULL|~|)$")
_BOOL = re.compile(r"^(true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_PREFIXED_INT = re.compile(r"^0(o[0-7]+|x[0-9a-fA-F]+)$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_INFINITY = re.compile(r"^[-+]?\.(inf|Inf|INF)$")
_NAN = re.compile(r"^\.(nan|NaN|NAN)$")
_PLAIN_TAGS = {"tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map", "!", None}
_MAX_INT_DIGITS = 100

_MOST_OF_VALUE, _MOST_OF_PATH = 80, 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """Values with their origin.

    Attributes:
        where: file or caller, as errors name it.
        lines: line of each key and list item, counted from 1; empty for values without a file.
        overrides: the `--set` text that gave a key its value.
    """

    values: dict[str, Any]
    where: str
    lines: Mapping[Key, int] = field(default_factory=dict)
    overrides: Mapping[Key, str] = field(default_factory=dict)

    def line(self, key: Key) -> int:
        """Returns the line of the nearest enclosing key that has one, else 0."""
        above = (key[:n] for n in range(len(key), 0, -1))
        return next((self.lines[at] for at in above if at in self.lines), 0)

    def override(self, key: Key) -> str | None:
        """Returns the `--set` that `key` came from, if any."""
        return next((text for at, text in self.overrides.items() if key[: len(at)] == at), None)

    def place(self, key: Key) -> str:
        """Returns where `key` stands: `setups/a.yaml:14`, or just the file or caller."""
        line = self.line(key)
        return f"{self.where}:{line}" if line else self.where


def dotted(key: Key) -> str:
    """Returns a key as a person writes it: `dataset.splits[1]`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in key]
    return "".join(parts).removeprefix(".")


def shown(value: object, limit: int | None = None) -> str:
    """Returns a value as it may stand in a one-line error: one line, not too long.

    Args:
        value: what is shown.
        limit: characters at most [400 of a path, which is of use as a whole only; 80].
    """
    limit = limit or (_MOST_OF_PATH if isinstance(value, Path) else _MOST_OF_VALUE)
    text = str(value) if isinstance(value, Path) and str(value).isprintable() else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def read_document(path: Path) -> Document:
    """Reads one YAML file.

    Raises:
        SpecError: the file is missing, unreadable, empty, no UTF-8, no YAML, or no mapping of keys.
    """
    where = str(path) if str(path).isprintable() else repr(str(path))
    text = _read_text(path, where)
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise SpecError(_syntax_error(where, text, error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(
            f"Invalid YAML: {where}:{line}; a character that YAML does not allow. Remove it."
        ) from error
    except RecursionError as error:
        raise SpecError(f"Invalid YAML: {where}; nested too deeply. Flatten it.") from error
    if node is None:
        raise SpecError(f"Empty file: {where}; expected `key: value` lines. Write some.")
    if not isinstance(node, yaml.MappingNode):
        raise SpecError(f"Invalid YAML: {where}:1; expected `key: value` lines at the top level.")
    builder = _Builder(where)
    return Document(values=builder.mapping(node, ()), where=where, lines=builder.lines)


def parse_scalar(text: str) -> Any:
    """Returns the value of an unquoted scalar by the core schema."""
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    number = _parse_number(text)
    return text if number is None else number


def parse_value(text: str, where: str) -> Any:
    """Returns the value of `text` on a command line: a scalar, a quoted text, `[a, b]` or `{a: b}`.

    Args:
        text: what stands after the `=`.
        where: the option that holds it, as errors name it.

    Raises:
        SpecError: it begins as a list, a mapping or a quoted text and is none.
    """
    text = text.strip()
    if text[:1] not in ("[", "{", '"', "'"):
        return parse_scalar(text)
    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return text if node is None else _Builder(where).value(node, ())
    except (yaml.YAMLError, RecursionError) as error:
        problem = getattr(error, "problem", None) or "not YAML"
        raise SpecError(
            f"Invalid YAML: {where}; {' '.join(problem.split())}. Correct it, or put it in quotes "
            "within the shell's if it is text."
        ) from error


def _parse_number(text: str) -> int | float | None:
    if _INT.match(text):
        return int(text) if len(text) <= _MAX_INT_DIGITS else None
    if _PREFIXED_INT.match(text) and len(text) <= _MAX_INT_DIGITS:
        return int(text, 0)
    if _FLOAT.match(text):
        return float(text)
    if _INFINITY.match(text):
        return -math.inf if text.startswith("-") else math.inf
    return math.nan if _NAN.match(text) else None


def _read_text(path: Path, where: str) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise SpecError(f"No such file: {where}; looked from {Path.cwd()}. Check it.") from error
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise SpecError(f"Cannot read: {where}; {why}. Name a readable YAML file.") from error
    except ValueError as error:  # a NUL in the name
        raise SpecError(f"Invalid file name: {where}; {error}. Check the path.") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise SpecError(f"Invalid text: {where}:{line}; not UTF-8. Save it as UTF-8.") from error


def _syntax_error(where: str, text: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    problem = (error.problem or error.context or "not YAML").replace("\n", " ")
    source = text.splitlines()[line - 1] if mark and line <= len(text.splitlines()) else ""
    if "\\t" in problem or source.lstrip(" ").startswith("\t"):
        return f"Invalid YAML: {where}:{line}; a tab. Indent with spaces."
    if "mapping values are not allowed" in problem:
        problem += "; a value with `: ` in it needs quotes, or the line above is incomplete"
    elif "expected a single document" in (error.context or ""):
        problem = "a second document after `---`; one file holds one"
    return f"Invalid YAML: {where}:{line}; {problem}. Correct the line."


class _Builder:
    """Turns composed nodes into plain values, noting lines."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[Key, int] = {}
        self._open: set[int] = set()

    def value(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        if node.tag not in _PLAIN_TAGS:
            raise SpecError(
                f"Unsupported tag: {self.where}:{line} {shown(node.tag)}; values are plain YAML. "
                "Remove it."
            )
        if id(node) in self._open:
            raise SpecError(f"Invalid YAML: {self.where}:{line}; an anchor in itself. Remove it.")
        if isinstance(node, yaml.ScalarNode):
            return parse_scalar(node.value) if node.style is None else node.value
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, key)
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def mapping(self, node: yaml.MappingNode, at: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise SpecError(f"Invalid key: {self.where}:{line}; a key is one word. Correct it.")
            name = key_node.value
            if name in values:
                raise SpecError(
                    f"Duplicate key: {self.where}:{line} {dotted((*at, name))}; "
                    f"it stands on line {first[name]} already. Keep one."
                )
            first[name] = self.lines[(*at, name)] = line
            values[name] = self.value(value_node, (*at, name))
        return values
