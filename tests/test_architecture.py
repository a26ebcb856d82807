"""The direction of imports, and what may not be imported where a person waits."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatspace
from chatspace.kinds import KINDS
from tests.conftest import texts, write_parquet
from tests.test_plan_build import model_folder

PACKAGE = Path(chatspace.__file__).parent
KIND_ROOMS = tuple(kind.package.split(".")[1] for kind in KINDS.values())
# A room imports from rooms further up only; those in one line know nothing of each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("__init__", "errors"),
    ("layout", "env", "atomic", "resources", "kinds", "wording"),
    ("spec",),
    ("shards",),
    ("data", "chunking"),
    ("plan",),
    (*KIND_ROOMS, "jobs"),
    ("checks", "watch"),
    ("measure", "mend", "export"),
    ("run", "viz"),
    ("api",),
    ("demo", "flag_command"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
HEAVY = ("torch", "vllm", "duckdb", "streamlit", "transformers", "sentence_transformers")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports_of(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """Yields the modules that a file imports; without `everywhere` only when it is imported itself.

    What stands under `if TYPE_CHECKING:` is not imported by anyone, but is a dependency all the
    same.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            submodule = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in submodule if source_of(name) is not None)
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def source_of(module: str) -> Path | None:
    if module.partition(".")[0] != "chatspace":
        return None
    base = PACKAGE.joinpath(*module.split(".")[1:])
    found = [p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()]
    return found[0] if found else None


def sources() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_every_room_has_a_place_in_the_order() -> None:
    assert {room_of(module) for module in sources()} <= set(RANK)


@pytest.mark.parametrize("module", sources())
def test_imports_go_one_way(module: str) -> None:
    mine = room_of(module)
    for name in imports_of(sources()[module]):
        theirs = room_of(name)
        if not name.startswith("chatspace") or theirs == mine:
            continue
        lazy_door = module == "chatspace" and theirs in ("api", "run")
        assert lazy_door or RANK[theirs] < RANK[mine], f"{module} imports {name}"


def test_kinds_are_reached_through_the_registry_alone() -> None:
    for module, path in sources().items():
        for name in imports_of(path):
            if name.startswith("chatspace") and room_of(name) in KIND_ROOMS:
                assert room_of(module) == room_of(name), f"{module} imports {name}"


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: {n for n in imports_of(path, everywhere=False) if n in sources() and n != module}
        for module, path in sources().items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph[module]:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def imported_by(code: str, *arguments: str) -> set[str]:
    """Returns the top-level modules that a new interpreter has after running some code."""
    code += "\nimport sys; print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_help_imports_next_to_nothing() -> None:
    code = (
        "import sys; from chatspace import cli; sys.argv = ['chatspace', '--help']\n"
        "try: cli.main()\nexcept SystemExit as end: assert not end.code"
    )
    heavy = {*HEAVY, "pydantic", "pyarrow", "rich", "numpy", "yaml", "jinja2", "submitit"}
    assert heavy & imported_by(code) == set()


def test_import_chatspace_is_free() -> None:
    assert {"typer", "pydantic", "pyarrow", "numpy"} & imported_by("import chatspace") == set()


def test_plan_render_submit_and_status_import_nothing_heavy(tmp_path: Path) -> None:
    write_parquet(tmp_path / "docs.parquet", {"text": texts(300), "key": list(range(300))})
    model_folder(tmp_path / "tiny")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"kind: embed\nname: test\nworkspace: {tmp_path}/ws\n"
        f"dataset: {{source: parquet, path: {tmp_path}/docs.parquet, id_field: key}}\n"
        f"model: {{name: {tmp_path}/tiny}}\nslurm: {{log_dir: {tmp_path}/logs}}\n"
    )
    code = """
import sys
from pathlib import Path
from chatspace.jobs.overview import setup_lines
from chatspace.jobs.setup import set_up
from chatspace.watch.status import run_status
from chatspace.jobs.submissions import submit_all
from chatspace.spec.loading import load_spec
import chatspace.cli, chatspace.api, chatspace.jobs.task, chatspace.jobs.gather

class Fake:
    ids = iter("78")
    def submit(self, script, *, after=()):
        return next(self.ids)
    def states(self, job_ids):
        return {job: "COMPLETED" for job in job_ids}

path = Path(sys.argv[1])
done = set_up(load_spec(path), spec_path=path, out=path.parent / "out")
assert setup_lines(done)
assert len(submit_all(done, Fake())) == 2
assert run_status(done.plan, scheduler=Fake()).jobs == {"COMPLETED": 2}
assert chatspace.open_run(done.plan.run_id, workspace=done.plan.workspace).status()
"""
    assert set(HEAVY) & imported_by(code, str(spec)) == set()
