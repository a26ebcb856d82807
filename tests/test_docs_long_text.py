"""What docs/long-text.md tells its readers to do, done."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "long-text.md").read_text(encoding="utf-8")


def block(language: str, index: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[index]


def test_page_example_runs_and_reads_as_it_says(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block("python"), {})
    (tmp_path / "long.yaml").write_text(block("yaml"))
    program, *words = block("bash").split()
    assert program == "chatspace"
    done = subprocess.run(
        [sys.executable, "-m", "chatspace", *words, "--set", f"model.name={tiny_model}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"chunks +[\d,]+", done.stdout)
    (folder,) = (tmp_path / "workspace" / "runs").iterdir()
    names: dict[str, Any] = {}
    exec(block("python", 1).replace('"RUN"', repr(str(folder))), names)
    table, manifest = names["table"], names["run"].manifest()
    assert manifest["rows_embedded"] == 20 < manifest["chunks"] == len(names["chunks"])
    norms = np.linalg.norm(np.array(names["documents"]), axis=1)
    assert norms.shape == (20,) and np.allclose(norms, 1, atol=1e-5)
    columns = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.split("## What comes out")[1], re.M)
    told = re.findall(r"\w+", " ".join(columns))
    assert len(told) == 9 and set(told) <= set(table.column_names)
