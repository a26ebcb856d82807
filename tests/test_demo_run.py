from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatspace.demo.run import demo_overrides
from chatspace.resources import resource_dir
from chatspace.spec.loading import load_spec

SPEC = resource_dir("setups") / "demo.yaml"


def test_demo_overrides_another_workspace_holds_passages_and_model(tmp_path: Path) -> None:
    own = ["slices.count=2"]
    assert demo_overrides(SPEC, own) == own
    there = tmp_path / "other"
    spec: Any = load_spec(SPEC, demo_overrides(SPEC, [*own, f"workspace={there}"]))
    assert spec.dataset.path == str(there / "datasets/raw/python/docs/installed/passages.parquet")
    assert spec.model.name == str(there / "models" / "all-MiniLM-L6-v2")
    chosen = [f"workspace={there}", "model.name=mine"]
    spec = load_spec(SPEC, demo_overrides(SPEC, chosen))
    assert spec.model.name == "mine"


@pytest.mark.slow
def test_demo_embeds_real_text_with_the_real_model_and_draws_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chatspace", "demo", "--set", "dataset.max_rows=300"]
    options = ["--set", "output.rows_per_shard=25"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "300 rows, every one accounted for" in done.stdout
    assert "4 slices" in done.stdout
    (run,) = (tmp_path / "workspace" / "runs").iterdir()
    assert (run / "map.png").read_bytes().startswith(b"\x89PNG")
    page = (run / "map.html").read_text(encoding="utf-8")
    assert "numpy" in page
    # Self-contained: nothing in it is fetched, though texts may speak of addresses.
    head, _, rest = page.partition('<script type="application/json"')
    code = head + rest.partition("</script>")[2]
    assert re.findall(r"""(?:src|href)=["']|url\(|@import|fetch\(""", code) == []
