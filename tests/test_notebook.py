"""The worked notebook of docs/ runs as it stands, in a kernel of its own."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from chatspace.api import open_run, runs

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"
CELL_TIMEOUT_S = 300


def execute(folder: Path, env: dict[str, str]) -> Any:
    """Runs the notebook in a folder and returns it with its outputs; a cell that fails fails."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    env = {**env, "CHATSPACE_WORKSPACE": str(folder / "ws"), "IPYTHONDIR": str(folder / "ipython")}
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=env)
    return notebook


def outputs(notebook: Any, cell_id: str) -> list[Any]:
    return next(list(cell.outputs) for cell in notebook.cells if cell.id == cell_id)


def output_of(notebook: Any, cell_id: str) -> str:
    """Returns all that a cell shows, as HTML where it has both."""
    found = []
    for output in outputs(notebook, cell_id):
        data = output.get("data", {})
        found.append(output.get("text") or data.get("text/html") or data.get("text/plain") or "")
    return "\n".join(found)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_notebook_runs_without_slurm_as_it_stands(tmp_path: Path) -> None:
    # Nothing of SLURM: a machine of one's own.
    path = str(Path(sys.executable).parent)
    notebook = execute(tmp_path, {**os.environ, "PATH": path})
    (run,) = runs(str(tmp_path / "ws"))
    assert run.run_id in output_of(notebook, "submit")
    assert re.search(r": (pending|running)<", output_of(notebook, "submit"))
    n_rows = int(output_of(notebook, "text"))
    assert output_of(notebook, "vectors") == f"({n_rows}, 384)"
    assert open_run(run.folder).manifest()["rows_embedded"] == n_rows
    shown = output_of(notebook, "neighbours").splitlines()
    best = [line.split()[1].split("/")[0] for line in shown if line.startswith("0.")]
    assert len(best) == 5
    assert {"exceptions", "raise", "try"}.intersection(best[:3]), shown
    assert run.run_id in output_of(notebook, "again")
    assert "Next time" in output_of(notebook, "open")
    assert [outputs(notebook, cell) for cell in ("slurm", "repair", "submitit")] == [[], [], []]
    # One display, updated in place, and last of all with the end.
    (shown,) = [o for o in outputs(notebook, "wait") if o.output_type == "display_data"]
    assert "complete" in shown["data"]["text/html"]


def test_notebook_in_git_has_no_outputs_and_is_small() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert NOTEBOOK.stat().st_size < 20_000
