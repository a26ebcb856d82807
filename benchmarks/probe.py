"""What a probe predicts, and what the run then takes.

    python benchmarks/probe.py [--rounds 3] [--rows 6000] [--minutes 0.5] [--slices 2]
    python benchmarks/probe.py --quick          # shows in a minute that it works

Each round makes a workspace of its own, probes the spec, runs it, and asks `chatspace report` for
outcome over prediction, all of it through the command line. The table gives, for each figure, what
was predicted and what came in the median of the rounds, the median of the rounds' ratios, and the
ratio that is farthest from one. Passages of MiniLM's corpus, the later half of them the longer one,
so that rows do not tell how long a slice takes. On a busy machine it tells of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from corpora import corpus
from minilm import prepared_model, token_count
from report import hardware, print_table, versions

TIMEOUT_S = 3600
TOKENS_PER_ROW = 120
QUICK = {"rounds": 1, "rows": 120, "minutes": 0.05}


def played(folder: Path, spec: str, minutes: float) -> dict[str, Any]:
    """Returns the report of one run that was probed first."""
    folder.mkdir()
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    chatspace(folder, "probe", "spec.yaml", "--minutes", str(minutes), "--json")
    chatspace(folder, "run", "spec.yaml")
    (run,) = (folder / "ws" / "runs").iterdir()
    report: dict[str, Any] = json.loads(chatspace(folder, "report", str(run), "--json"))
    return report


def chatspace(folder: Path, *words: str) -> str:
    """Returns what a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", "chatspace", *words],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"chatspace {words[0]} ended with {done.returncode}: {done.stderr}")
    return done.stdout


def write_corpus(path: Path, model: Path, rows: int) -> None:
    """Writes passages, the longer half of them last."""
    passages = corpus("passages", n_tokens=rows * TOKENS_PER_ROW, count=token_count(model))[:rows]
    half = sorted(passages, key=len)[len(passages) // 2]
    ordered = sorted(passages, key=lambda text: len(text) > len(half))
    pq.write_table(pa.table({"text": ordered}), path, row_group_size=200)


def table(reports: list[dict[str, Any]]) -> list[list[object]]:
    """Returns a line for each figure that was predicted."""
    lines: list[list[object]] = []
    for key in reports[0]["ratios"]:
        predicted = [report["prediction"].get(key) for report in reports]
        came = [report["outcome"].get(key) for report in reports]
        ratios = [report["ratios"][key] for report in reports]
        lines.append(
            [
                key,
                *(
                    statistics.median(values) if None not in values else None
                    for values in (predicted, came)
                ),
                f"{statistics.median(ratios):.2f}",
                f"{max(ratios, key=lambda ratio: max(ratio, 1 / ratio)):.2f}",
            ]
        )
    return lines


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=0.5, help="of each probe")
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)
    with tempfile.TemporaryDirectory(prefix="chatspace-probe-") as name:
        folder = Path(name)
        model = prepared_model(folder)
        write_corpus(folder / "train.parquet", model, options.rows)
        spec = (
            "kind: embed\nname: probed\nworkspace: ws\n"
            f"dataset: {{source: parquet, path: {folder / 'train.parquet'}}}\n"
            f"model: {{name: {model}, device: auto, max_tokens: 512}}\n"
            f"output: {{rows_per_shard: {max(50, options.rows // 12)}}}\n"
            f"slices: {{count: {options.slices}}}\nslurm: {{profile: local}}\n"
        )
        facts = versions("chatspace", "torch", "transformers")
        print("\n".join([*hardware(), f"- {options.rows:,} rows, {options.slices} tasks; {facts}"]))
        rounds = range(options.rounds)
        reports = [played(folder / f"round{i}", spec, options.minutes) for i in rounds]
    print()
    columns = ["figure", "predicted", "came", "came / predicted", "farthest from 1"]
    print_table(columns, table(reports))


if __name__ == "__main__":
    main()
