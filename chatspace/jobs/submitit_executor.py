"""submitit's own executors: each array element is one slice, the command that a batch script runs.

Not covered: the grace before the walltime (submitit's own signal and requeue take its place),
`slurm.mail` and `slurm.log_dir` (its logs lie in `runs/{run_id}/submitit/`), arrays above
MaxArraySize. A virtual environment is not activated; its interpreter is called.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chatspace.errors import ExitCode, InterruptedRun, UnfitEnvironmentError
from chatspace.jobs.directives import lanes_of, quote
from chatspace.jobs.local import SliceFailed, slices_of, task_command
from chatspace.jobs.render import container_command, task_environment
from chatspace.jobs.submissions import Submission, local_job_id, record_submission
from chatspace.layout import Layout
from chatspace.plan.model import Plan
from chatspace.spec.slurm import walltime_min

STOP_TIMEOUT_S = 60.0


class SliceCall:
    """What submitit pickles: the command of one array task.

    The task is a child process, so that its signals are its own and a crash in it is an exit code.

    Args:
        command: words of the task's command line.
        env: variables that the task gets beside those of the job.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.command = list(command)
        self.env = dict(env)
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Runs the task.

        Raises:
            InterruptedRun: it was told to stop.
            SliceFailed: it failed; its output is in submitit's log.
        """
        self._child = subprocess.Popen(self.command, env={**os.environ, **self.env})
        code = self._child.wait()
        if code == ExitCode.INTERRUPTED:
            raise InterruptedRun("Interrupted: the slice was told to stop. Submit it again.")
        if code != ExitCode.DONE:
            raise SliceFailed(f"Slice failed: exit code {code}: {' '.join(self.command)}")

    def checkpoint(self) -> Any:
        """Stops the task, which keeps its shards; called by submitit when the walltime is near.

        Returns:
            What submitit puts into the queue again.
        """
        import submitit

        if self._child is not None:
            self._child.terminate()
            if not _has_ended(self._child.pid, STOP_TIMEOUT_S):
                self._child.kill()
        return submitit.helpers.DelayedSubmission(SliceCall(self.command, self.env))

    def __getstate__(self) -> dict[str, Any]:
        return {"command": self.command, "env": self.env, "_child": None}


def _has_ended(pid: int, timeout_s: float) -> bool:
    """Waits for a child; by its id, for `Popen.wait` is what the signal has interrupted."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
        except ChildProcessError:
            return True
        time.sleep(0.1)
    return False


def submit_with_submitit(
    plan: Plan, *, cluster: str | None = None
) -> tuple[list[Any], list[Submission]]:
    """Submits every slice as an element of a submitit array.

    Args:
        plan: the run, already written to disk.
        cluster: `slurm`, `local` or None for what submitit finds.

    Returns:
        submitit's jobs, in the order of `slices_of(plan)`, and the record of what was submitted.
    """
    import submitit

    limit = plan.cluster["max_array_size"]
    if cluster != "local" and limit and len(slices_of(plan)) > limit:
        raise UnfitEnvironmentError(
            f"Too many tasks for submitit: {len(slices_of(plan))}; the cluster takes {limit} in "
            f"one array. Set slices.max_tasks={limit}, or use executor='sbatch', which divides it."
        )
    folder = Layout(Path(plan.workspace)).run(plan.run_id).folder / "submitit"
    executor = submitit.AutoExecutor(
        folder=folder, cluster=cluster, slurm_max_num_timeout=plan.cluster["max_requeues"]
    )
    executor.update_parameters(**_parameters(plan, executor.cluster))
    python = () if executor.cluster != "slurm" else _python_in_container(plan)
    env = task_environment(plan.cluster)
    lanes = lanes_of(plan.cluster) if executor.cluster == "slurm" else 1
    with executor.batch():
        jobs = [
            executor.submit(
                SliceCall(
                    [*task_command(plan, split, slice_, python=python), "--lanes", str(lanes)], env
                )
            )
            for split, slice_ in slices_of(plan)
        ]
    return jobs, _recorded(plan, jobs, executor.cluster)


def _parameters(plan: Plan, cluster: str) -> dict[str, Any]:
    settings = plan.cluster
    parameters: dict[str, Any] = {
        "name": plan.run_id,
        "timeout_min": max(1, walltime_min(settings["time"])),
    }
    if cluster != "slurm":
        return parameters
    by_process = settings["gpu_directive"] == "gpus-per-task"
    count = min(1, settings["gpus_per_task"]) if by_process else settings["gpus_per_task"]
    amount = f"{settings['gpu_type']}:{count}" if settings["gpu_type"] else str(count)
    gpu_key = "slurm_gpus_per_task" if by_process else "slurm_gres"
    count = 0 if settings["gpu_directive"] == "none" else count
    wanted = {
        "nodes": settings.get("nodes", 1),
        "tasks_per_node": lanes_of(settings) // settings.get("nodes", 1),
        "cpus_per_task": settings["cpus_per_task"],
        "mem_gb": settings["mem_gb"],
        "slurm_partition": settings["partition"],
        "slurm_account": settings["account"],
        "slurm_qos": settings["qos"],
        "slurm_constraint": settings["constraint"],
        "slurm_array_parallelism": settings["array_parallelism"] or len(slices_of(plan)),
        gpu_key: (f"gpu:{amount}" if gpu_key == "slurm_gres" else amount) if count else None,
        "slurm_setup": [
            *(f"module load {quote('modules', module)}" for module in settings["modules"]),
            *settings["setup"],
        ],
        # submitit writes a wckey of its own; `slurm.extra.wckey` takes its place.
        "slurm_additional_parameters": {"requeue": True, **settings["extra"]},
    }
    return parameters | {key: value for key, value in wanted.items() if value is not None}


def _python_in_container(plan: Plan) -> list[str]:
    words = container_command(plan, _runtime(plan))
    venv = plan.cluster["venv"]
    if words:
        return [*words, f"{venv}/bin/python" if venv else "python3"]
    return [f"{venv}/bin/python"] if venv else []


def _runtime(plan: Plan) -> str:
    runtime = str(plan.cluster["runtime"])
    if runtime != "auto":
        return runtime
    # Looked for here, where a job script would look on its node.
    has_only_old = shutil.which("apptainer") is None and shutil.which("singularity") is not None
    return "singularity" if has_only_old else "apptainer"


def _recorded(plan: Plan, jobs: Sequence[Any], cluster: str) -> list[Submission]:
    submitted, first = [], 0
    for split in plan.splits:
        of_split = jobs[first : first + len(split.slices)]
        record = partial(record_submission, plan, split=split.name)
        if cluster == "slurm":
            job_id = str(of_split[0].job_id).split("_")[0]
            count = first + len(of_split)  # of the array, whose first elements are other splits'
            submitted.append(record(job_id=job_id, executor="submitit", offset=-first, count=count))
        else:
            submitted += [
                record(job_id=local_job_id(int(job.job_id)), executor="local", offset=i, count=1)
                for i, job in enumerate(of_split)
            ]
        first += len(split.slices)
    return submitted
