"""The benchmark scripts run where there is no GPU, and their tables hold what they promise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STRATEGY = "batches (median tokens of a row)"


def run(script: str, *options: str) -> str:
    """Returns what a benchmark prints on stdout."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "CHATSPACE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *options],
        capture_output=True,
        text=True,
        timeout=240,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(text: str) -> list[dict[str, str]]:
    """Returns the rows of the one Markdown table in a text, by column."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert set("".join(cells[1])) <= {"-", ":"}
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def test_padding_quick_orders_the_strategies() -> None:
    text = run("padding.py", "--quick")
    assert "- Date: " in text
    assert "- Versions: chatspace " in text
    waste = {row.pop(STRATEGY): {k: float(v) for k, v in row.items()} for row in table(text)}
    assert len(waste) == 8
    assert all(figure >= 1 for figures in waste.values() for figure in figures.values())
    packed = [figures for name, figures in waste.items() if name.startswith("chatspace packed")]
    assert len(packed) == 2
    assert all(figure == 1 for figures in packed for figure in figures.values())
    column = next(name for name in packed[0] if name.startswith("chat-like"))
    arrival, in_order, from_128, from_16, trimmed = [f[column] for f in waste.values()][:5]
    assert trimmed < from_16 < from_128 < arrival
    assert in_order < from_16


@pytest.mark.slow
def test_pipeline_quick_compares_both_on_the_same_rows(tiny_model: Path, tmp_path: Path) -> None:
    text = run("pipeline.py", "--quick", "--model", str(tiny_model), "--folder", str(tmp_path))
    rows = {row["measure"]: row for row in table(text)}
    for name in ("rows", "real tokens"):
        assert rows[name]["encoder alone"] == rows[name]["Parquet to Parquet"] != ""
    assert rows["rows"]["Parquet to Parquet"] == "200"
    assert rows["overhead over the encoder alone"]["Parquet to Parquet"].endswith(" %")
    assert rows["always below 2,048 MB"]["Parquet to Parquet"] == "yes"
    for name in ("loader", "encoder", "writer"):
        busy, idle = rows[f"{name}: busy / idle s"]["Parquet to Parquet"].split(" / ")
        assert float(busy) >= 0
        assert float(idle) >= 0
    steps = [float(row["Parquet to Parquet"]) for n, row in rows.items() if n.startswith("start: ")]
    assert sum(steps[:-1]) == pytest.approx(steps[-1], rel=0.1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_pipeline_simulate_runs_no_forward_pass(tiny_model: Path) -> None:
    text = run("pipeline.py", "--simulate", "--rows", "500", "--model", str(tiny_model))
    rows = {row["measure"]: row for row in table(text)}
    assert "no forward pass" in text
    assert rows["rows"] == {"measure": "rows", "encoder alone": "", "Parquet to Parquet": "500"}
    assert rows["always below 2,048 MB"]["Parquet to Parquet"] == "yes"
    assert "overhead over the encoder alone" not in rows


@pytest.mark.slow
def test_encode_gpu_tiny_has_a_row_for_each_engine() -> None:
    text = run("encode_gpu.py", "--device", "cpu", "--tiny", "--models", "qwen3-0.6b")
    assert "matmul peak" in text
    rows = table(text)
    for lengths in ("50", "512", "heavy tail"):
        found = {row["engine"]: row for row in rows if row["lengths"] == lengths}
        assert found.pop("sentence-transformers unpadded, 256")["note"] == "not run: no GPU"
        assert set(found) == {
            "sentence-transformers, 32",
            "sentence-transformers, 256",
            "chatspace buckets",
            "chatspace packed",
        }
        for row in found.values():
            assert float(row["min cosine"]) > 0.999
            assert int(row["tokens/s, texts in"].replace(",", "")) > 0
            assert row["of matmul peak"].endswith(" %")
    (compiled,) = [row for row in rows if row["engine"] == "chatspace buckets, compiled"]
    assert compiled["note"].startswith("not run: ")


def test_gpu_load_reads_what_nvidia_smi_prints(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho '[N/A]'\nwhile :; do echo 40; echo 80; sleep 0.01; done\n")
    fake.chmod(0o755)
    probe = (
        f"import sys, time; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "from gpu_load import GpuLoad\n"
        "load = GpuLoad.start()\n"
        "while len(load._samples) < 4: time.sleep(0.01)\n"
        "time.sleep(0.1)\n"
        "print(round(load.stop(), 1))\n"
    )
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert done.stdout.strip() == "0.6", done.stderr
