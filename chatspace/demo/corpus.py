"""The demo dataset: documentation of the installed Python and of the packages installed with it.

Sources are parsed and never imported, so that writing the dataset runs no foreign code. Every
choice hangs on a stable hash of a name: the same installation gives the same rows in one order.

Not covered: documentation of functions written in C, which has no source to parse.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from chatspace.atomic import atomic_path, atomic_write_text
from chatspace.errors import InputError

STDLIB = "python"
# What installing chatspace with its demo brings; fixed lists, so that developer tools which happen
# to be installed too change nothing. Twelve large parts, as many as colours can be told apart ...
_LARGE = (
    STDLIB,
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "pydantic",
    "rich",
    "scipy",
    "sklearn",
    "sympy",
    "torch",
    "transformers",
)
# ... and some small ones.
_SMALL = ("datasets", "fsspec", "huggingface_hub", "pyarrow", "sentence_transformers")
MAX_PASSAGES = {**dict.fromkeys(_LARGE, 375), **dict.fromkeys(_SMALL, 100)}
"""Passages of each package at most, so that none dominates the picture."""
CANDIDATES = 1000
"""Parsing a package stops here: all of torch alone would take a minute."""
SHORT_CHARS = 40
"""Shorter documentation says no more than the name does and is left out; none at all is a row."""
LONG_CHARS = 1000
"""Of longer documentation one in three is kept: a tail, not a third of the run's time."""
ROWS_PER_GROUP = 1024
_LEFT_OUT = frozenset(
    {"test", "tests", "testing", "conftest", "idlelib", "lib2to3", "site-packages", "externals"}
    | {
        "turtledemo",
        "pydoc_data",
        "_vendor",
        "vendor",
        "vendored",
        "__main__",
        "antigravity",
        "this",
    }
)
_FILE_NAME = "passages.parquet"
_RECORD_NAME = "dataset.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """One row of the dataset.

    Attributes:
        id: dotted name of what is documented; unique.
        text: its documentation; empty for a package that says nothing about itself.
        kind: `class`, `function`, `module` or `topic`.
    """

    id: str
    text: str
    module: str
    package: str
    kind: str


def corpus_folder(workspace: Path) -> Path:
    """Returns where the dataset lies: one place for any Python, so that no spec needs a glob."""
    return workspace / "datasets" / "raw" / "python" / "docs" / "installed"


def corpus_file(workspace: Path) -> Path:
    """Returns where the passages lie, once they are written."""
    return corpus_folder(workspace) / _FILE_NAME


def write_corpus(folder: Path) -> Path:
    """Writes the dataset once, with `dataset.json` beside it; a dataset that is there is kept.

    Args:
        folder: made where it is missing; see `corpus_folder`.

    Returns:
        Path of the Parquet file.

    Raises:
        InputError: this Python has no sources to read.
    """
    path, record = folder / _FILE_NAME, folder / _RECORD_NAME
    if path.is_file() and record.is_file():
        return path
    passages = collect_passages()
    if not passages:
        stdlib = sysconfig.get_path("stdlib")
        raise InputError(
            f"No documentation to read: stdlib={stdlib}; it holds no .py files. "
            "Use a Python that is installed with its sources."
        )
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(passage) for passage in passages])
    with atomic_path(path) as tmp:
        pq.write_table(table, tmp, row_group_size=ROWS_PER_GROUP, compression="zstd")
    # The record comes last: a dataset without it is written again.
    atomic_write_text(record, json.dumps(_record(passages), indent=2) + "\n")
    return path


def collect_passages() -> list[Passage]:
    """Returns the passages in the order of their hash, so that any first rows are a fair sample."""
    chosen = [passage for package in MAX_PASSAGES for passage in _choose(package)]
    return sorted(_without_repeats(chosen), key=lambda passage: _rank(passage.id))


def _rank(name: str) -> bytes:
    """Returns the place of a name in an order that looks shuffled and is always the same."""
    return hashlib.sha256(name.encode()).digest()


def _choose(package: str) -> list[Passage]:
    """Returns at most `MAX_PASSAGES` of one package's passages, topics of the language first."""
    found = [passage for passage in _passages(package) if _is_kept(passage)]
    found = sorted(_without_repeats(found), key=lambda p: (p.kind != "topic", _rank(p.id)))
    return found[: MAX_PASSAGES[package]]


def _passages(package: str) -> Iterator[Passage]:
    if package == STDLIB:
        stdlib = Path(sysconfig.get_path("stdlib"))
        yield from _topics(stdlib)
        yield from _candidates(package, stdlib, _stdlib_files(stdlib))
    else:
        site = Path(sysconfig.get_path("purelib"))
        yield from _candidates(package, site, sorted((site / package).rglob("*.py")))


def _is_kept(passage: Passage) -> bool:
    if len(passage.text) > LONG_CHARS and passage.kind != "topic":
        return _rank(passage.id)[-1] % 3 == 0
    return len(passage.text) >= SHORT_CHARS or not passage.text


def _without_repeats(passages: Iterable[Passage]) -> list[Passage]:
    """Returns the first passage of each id and of each text: copies say nothing new."""
    by_id: dict[str, Passage] = {}
    for passage in passages:
        by_id.setdefault(passage.id, passage)
    by_text: dict[str, Passage] = {}
    for passage in by_id.values():
        by_text.setdefault(passage.text or passage.id, passage)
    return list(by_text.values())


def _stdlib_files(stdlib: Path) -> list[Path]:
    """Returns the sources of the standard library's public modules."""
    files: list[Path] = []
    for entry in sorted(stdlib.iterdir()):
        if entry.name.startswith("_") or entry.stem in _LEFT_OUT:
            continue
        files += sorted(entry.rglob("*.py")) if entry.is_dir() else [entry][: entry.suffix == ".py"]
    return files


def _topics(stdlib: Path) -> Iterator[Passage]:
    """Yields the topics of `help()`, which are chapters of the language reference."""
    tree = _parse(stdlib / "pydoc_data" / "topics.py")
    for node in tree.body if tree else ():
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Passage(
                    id=f"pydoc_data.topics.{name}",
                    text=text.strip(),
                    module="pydoc_data.topics",
                    package=STDLIB,
                    kind="topic",
                )


def _candidates(package: str, root: Path, files: list[Path]) -> Iterator[Passage]:
    """Yields passages, module by module in the order of their hash, until there are enough."""
    modules = {_module_name(path, root): path for path in files if not _is_left_out(path, root)}
    n_found = 0
    for module in sorted(modules, key=_rank):
        if n_found >= CANDIDATES:
            return
        for passage in _documented(modules[module], module, package):
            n_found += 1
            yield passage


def _is_left_out(path: Path, root: Path) -> bool:
    parts = path.relative_to(root).with_suffix("").parts
    return not _LEFT_OUT.isdisjoint(parts) or parts[-1].startswith("test_")


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _documented(path: Path, module: str, package: str) -> Iterator[Passage]:
    """Yields what one source file documents, and the row of a package that documents nothing."""
    tree = _parse(path)
    if tree is None:
        return
    text = ast.get_docstring(tree)
    if text or path.name == "__init__.py":
        yield Passage(id=module, text=text or "", module=module, package=package, kind="module")
    for name, kind, text in _definitions(tree.body, module):
        yield Passage(id=name, text=text, module=module, package=package, kind=kind)


def _definitions(body: list[ast.stmt], parent: str) -> Iterator[tuple[str, str, str]]:
    """Yields name, kind and documentation of public classes, methods and functions."""
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        name = f"{parent}.{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        if text := ast.get_docstring(node):
            yield name, "class" if is_class else "function", text
        if is_class:
            yield from _definitions(node.body, name)


def _parse(path: Path) -> ast.Module | None:
    """Returns the syntax tree, or nothing for what is no valid source (a template)."""
    try:
        with warnings.catch_warnings():
            # Invalid escapes in foreign strings are no news to a person who runs the demo.
            warnings.simplefilter("ignore")
            return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


def _record(passages: list[Passage]) -> dict[str, object]:
    """Returns what `dataset.json` says: where the rows come from, how many each package gave."""
    rows = Counter(passage.package for passage in passages)
    return {
        "dataset": "python-docs",
        "source": "docstrings and help() topics of the installed Python and its packages",
        "python": platform.python_version(),
        "packages": {name: version for name in sorted(rows) if (version := _version(name))},
        "rows": len(passages),
        "rows_by_package": dict(sorted(rows.items())),
    }


def _version(package: str) -> str | None:
    """Returns the version of an importable package, whatever its distribution is called."""
    name = {"sklearn": "scikit-learn"}.get(package, package)
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
