"""The worked notebook where SLURM is: every cell of it runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chatspace.api import runs
from chatspace.jobs.submissions import read_submissions
from tests.test_notebook import execute, output_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]


def test_notebook_on_a_cluster_resubmits_and_gives_the_same_vectors_three_ways(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    notebook = execute(tmp_path, {**os.environ, **slurm})
    assert "complete" not in output_of(notebook, "slurm")
    assert "cancelled: [" in output_of(notebook, "repair")
    assert "submitted: [" in output_of(notebook, "repair")
    assert "no failed tasks" in output_of(notebook, "repair")
    found = runs(str(tmp_path / "ws"))
    assert [status.state for status in found.statuses] == ["complete"] * 3
    executors = {
        run.plan.name: {job.executor for job in read_submissions(run.plan)} for run in found
    }
    assert executors == {
        "topics": {"local"},
        "topics-sbatch": {"sbatch"},
        "topics-submitit": {"submitit"},
    }
