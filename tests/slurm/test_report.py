"""Probe and report on a real SLURM: a probe as a job, then what accounting says of the run."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import ACCOUNTING_LAG_S, wait_for_jobs
from tests.slurm.conftest import Project

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]

JOBS_TIMEOUT_S = 240


def submitted(folder: Path) -> list[str]:
    lines = (folder / "submissions.jsonl").read_text().splitlines()
    return [json.loads(line)["job_id"] for line in lines]


def wait_for_shard(folder: Path, timeout_s: float = 120) -> None:
    begun = time.monotonic()
    while not any(folder.glob("tasks/*.json")) or '"shard_index"' not in "".join(
        path.read_text() for path in folder.glob("tasks/*.json")
    ):
        assert time.monotonic() - begun < timeout_s, "no task wrote a shard"
        time.sleep(0.2)


def test_probe_as_a_job_is_taken_by_setup_and_compared_by_report(
    project: Callable[..., Project],
) -> None:
    here = project("a probe", rows=3000)
    here.write_spec(output={"rows_per_shard": 250}, slices={"count": 2})
    found = json.loads(
        here.chatspace("probe", "spec.yaml", "--submit", "--minutes", "0.05", "--json")
    )
    (folder,) = (here.folder / "ws" / "runs").iterdir()
    assert found["attempt"].endswith(".r0")
    assert found["samples"][0]["n_tokens"] > 0
    assert not (here.folder / "ws" / "embeddings").exists()
    shown = here.chatspace("setup", "spec.yaml", "--use-probe")
    assert "encode.tokens_per_batch: 2048" in shown
    assert "slurm.mem_gb: 2 not taken, the spec sets slurm.mem_gb" in shown

    (run,) = (p.parent for p in (here.folder / "ws" / "runs").glob("*/plan.json"))
    assert run != folder  # its token budget is a part of what it is
    here.chatspace("submit", str(run), "--no-doctor")
    jobs = submitted(run)
    states = wait_for_jobs(jobs, JOBS_TIMEOUT_S, here.env)
    assert set(states.values()) == {"COMPLETED"}, here.logs()
    report = wait_for_records(here, run, {"COMPLETED": 2})
    assert report["is_complete"]
    assert report["has_accounting"]
    assert report["outcome"]["rows"] == 3000
    assert report["outcome"]["tasks_finished"] == 2
    assert 0.05 < report["outcome"]["mem_gb"] < 2
    assert report["outcome"]["cpus"] > 0
    assert 0.9 < report["ratios"]["tokens_per_row"] < 1.1
    assert report == json.loads((run / "report.json").read_text())
    text = here.chatspace("report", str(run))
    assert "2 COMPLETED" in text
    assert max(map(len, text.splitlines())) <= 80


def test_report_counts_a_requeued_element_once_as_wasted(project: Callable[..., Project]) -> None:
    here = project("requeued", rows=6000)
    here.write_spec(output={"rows_per_shard": 50}, slices={"count": 1})
    here.chatspace("submit", "spec.yaml", "--no-doctor")
    (run,) = (here.folder / "ws" / "runs").iterdir()
    array, gather = submitted(run)
    wait_for_shard(run)
    scontrol(here.env, "requeue", f"{array}_0")
    states = wait_for_jobs([array, gather], JOBS_TIMEOUT_S, here.env)
    assert states[f"{array}_0"] == "COMPLETED", here.logs()
    report = wait_for_records(here, run, {"COMPLETED": 1, "REQUEUED": 1})
    assert report["is_complete"]
    assert report["requeues"] == 1
    assert report["attempts"]["finished"] == 1
    assert report["outcome"]["wasted_hours"] > 0
    assert report["outcome"]["device_hours"] > report["outcome"]["wasted_hours"]
    assert "1 begun again" in here.chatspace("report", str(run))


def test_report_without_accounting_has_the_tasks_own_figures(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    here = project("alone", rows=400)
    here.write_spec(slices={"count": 1})
    here.chatspace("submit", "spec.yaml", "--no-doctor")
    (run,) = (here.folder / "ws" / "runs").iterdir()
    wait_for_jobs(submitted(run), JOBS_TIMEOUT_S, here.env)
    blind = tmp_path / "bin"
    blind.mkdir()
    (blind / "sacct").write_text("#!/bin/sh\necho 'sacct: error: Problem talking' >&2\nexit 1\n")
    (blind / "sacct").chmod(0o755)
    env = {**here.env, "PATH": f"{blind}{os.pathsep}{here.env['PATH']}"}
    unaccounted = Project(here.folder, env, here.model)
    report = json.loads(unaccounted.chatspace("report", str(run), "--json"))
    assert not report["has_accounting"]
    assert report["outcome"]["rows"] == 400
    assert report["outcome"]["mem_gb"] > 0.05
    assert report["outcome"]["tokens_per_s"] > 0


def wait_for_records(here: Project, run: Path, states: Mapping[str, int]) -> dict[str, Any]:
    """Returns the report once accounting has caught up."""
    begun = time.monotonic()
    while True:
        report: dict[str, Any] = json.loads(here.chatspace("report", str(run), "--json"))
        if report["slurm_states"] == states:
            return report
        assert time.monotonic() - begun < ACCOUNTING_LAG_S, report["slurm_states"]
        time.sleep(0.5)


def scontrol(env: Mapping[str, str], *words: str) -> None:
    subprocess.run(["scontrol", *words], env=dict(env), check=True, timeout=30)
