"""What one execution of a task used: its GPUs, its memory, its processor time.

GPU facts are those of `nvidia-smi`, which says nothing of the parts of a divided GPU (MIG): a task
on one has no GPU facts. Nothing here is worth a failed task: what cannot be read is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL_S = 10.0
QUERY_TIMEOUT_S = 20.0
JOIN_TIMEOUT_S = 2.0
# A GPU that computes in fewer than this percent of the time counts as idle.
IDLE_PERCENT = 5.0

_FIELDS = "index,uuid,utilization.gpu,memory.used,memory.total"
_MB = 1024 * 1024


@dataclass(slots=True)
class _Gpu:
    """Readings of one GPU, one a sample: percent and MiB."""

    util: list[float] = field(default_factory=list)
    used_mb: list[float] = field(default_factory=list)
    total_mb: float = 0.0


class UsageSampler:
    """Watches this process from `start` to `stop`, in a thread that ends with the process.

        with UsageSampler() as sampler:
            work()
        usage = sampler.stop()  # may be called again; the first call counts

    The GPUs are those of `CUDA_VISIBLE_DEVICES`, else all that `nvidia-smi` shows.

    Args:
        interval_s: seconds between two samples of the GPUs.
        nvidia_smi: the command [`nvidia-smi` on the PATH, if it is there].
        proc: folder of this process in `/proc`.
    """

    def __init__(
        self,
        *,
        interval_s: float = INTERVAL_S,
        nvidia_smi: str | None = None,
        proc: Path = Path("/proc/self"),
    ) -> None:
        self._interval_s = interval_s
        self._command = nvidia_smi or shutil.which("nvidia-smi")
        self._proc = proc
        self._gpus: dict[str, _Gpu] = {}
        self._samples = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._query: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None
        self._started_s, self._cpu_s = time.monotonic(), _cpu_s()
        self._usage: dict[str, Any] | None = None

    def start(self) -> None:
        """Begins to count; the first sample is taken at once."""
        self._started_s, self._cpu_s = time.monotonic(), _cpu_s()
        if self._command is None or _visible_gpus() == []:
            return
        self._thread = threading.Thread(target=self._watch, name="usage", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no thread may be made: there are no GPU facts then
            self._thread = None

    def stop(self) -> dict[str, Any]:
        """Ends the sampling and returns what was used since `start`, as plain JSON values.

        Returns:
            `samples`, `elapsed_s`, `cpu_s` (children counted), `cpus_mean`; where they can be read
            `host_mem_peak_mb` (of this process), `cgroup_mem_peak_mb` (of the whole job where SLURM
            makes cgroups, page cache counted); with a GPU `gpus`, `gpu_util_mean`, `gpu_util_p10`,
            `gpu_util_p50`, `gpu_util_p90` (percent), `gpu_idle_share` (of the samples),
            `gpu_mem_peak_mb` and `gpu_mem_total_mb` (of the fullest GPU). All megabytes are MiB.
        """
        if self._usage is None:
            self._stopped.set()
            self._kill_query()
            if self._thread is not None:
                self._thread.join(JOIN_TIMEOUT_S)
            self._usage = {**self._host_facts(), **self._gpu_facts()}
        return self._usage

    def __enter__(self) -> UsageSampler:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._stopped.is_set():
            answer = self._ask()
            if answer is None and not self._samples:
                return  # no driver, no permission: it will not come
            if answer is not None:
                self._take(answer)
            self._stopped.wait(self._interval_s)

    def _ask(self) -> str | None:
        """Returns what `nvidia-smi` prints, None where it fails or the sampling has ended."""
        assert self._command is not None
        command = [self._command, f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits"]
        try:
            with self._lock:
                if self._stopped.is_set():
                    return None
                self._query = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            try:
                answer, _ = self._query.communicate(timeout=QUERY_TIMEOUT_S)
            finally:
                self._kill_query()
            return answer if self._query.returncode == 0 else None
        except (OSError, ValueError, subprocess.SubprocessError):
            return None

    def _kill_query(self) -> None:
        with self._lock:
            if self._query is not None and self._query.poll() is None:
                self._query.kill()

    def _take(self, answer: str) -> None:
        wanted = _visible_gpus()
        with self._lock:
            for line in answer.splitlines():
                words = [word.strip() for word in line.split(",")]
                if len(words) != 5 or not _is_mine(words[0], words[1], wanted):
                    continue
                gpu = self._gpus.setdefault(words[1], _Gpu())
                # A value that the GPU does not tell reads "[N/A]".
                util, used, total = (_number(word) for word in words[2:])
                gpu.util += [util] if util is not None else []
                gpu.used_mb += [used] if used is not None else []
                gpu.total_mb = total or gpu.total_mb
            self._samples += 1

    def _host_facts(self) -> dict[str, Any]:
        elapsed_s = time.monotonic() - self._started_s
        cpu_s = _cpu_s() - self._cpu_s
        facts: dict[str, Any] = {
            "samples": self._samples,
            "elapsed_s": round(elapsed_s, 3),
            "cpu_s": round(cpu_s, 3),
            "cpus_mean": round(cpu_s / elapsed_s, 2) if elapsed_s > 0 else 0.0,
        }
        peaks = {
            "host_mem_peak_mb": _process_peak_bytes(self._proc / "status"),
            "cgroup_mem_peak_mb": _cgroup_peak_bytes(self._proc / "cgroup"),
        }
        return facts | {key: -(-n // _MB) for key, n in peaks.items() if n is not None}

    def _gpu_facts(self) -> dict[str, Any]:
        with self._lock:
            gpus = list(self._gpus.values())
            util = sorted(reading for gpu in gpus for reading in gpu.util)
            peaks = [(max(gpu.used_mb), gpu.total_mb) for gpu in gpus if gpu.used_mb]
        facts: dict[str, Any] = {"gpus": len(gpus)} if gpus else {}
        if util:
            facts["gpu_util_mean"] = round(sum(util) / len(util), 1)
            facts |= {f"gpu_util_p{p}": _percentile(util, p) for p in (10, 50, 90)}
            idle = sum(reading < IDLE_PERCENT for reading in util)
            facts["gpu_idle_share"] = round(idle / len(util), 3)
        if peaks:
            facts["gpu_mem_peak_mb"], facts["gpu_mem_total_mb"] = map(int, max(peaks))
        return facts


def _visible_gpus() -> list[str] | None:
    """Returns the indices and UUIDs of `CUDA_VISIBLE_DEVICES`, None for all GPUs.

    Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/ (CUDA environment variables):
    an entry that is no device hides itself and those after it.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    end = next((i for i, name in enumerate(names) if not _is_device(name)), len(names))
    return names[:end]


def _is_device(name: str) -> bool:
    return name.isdigit() or name.startswith(("GPU-", "MIG-"))


def _is_mine(index: str, uuid: str, wanted: Sequence[str] | None) -> bool:
    if wanted is None:
        return True
    # The beginning of a UUID is enough for CUDA.
    return any(name == index or (name[:4] == "GPU-" and uuid.startswith(name)) for name in wanted)


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _process_peak_bytes(status: Path) -> int | None:
    try:
        lines = status.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _cgroup_peak_bytes(cgroup: Path, mount: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the most memory that the process's cgroup ever held, of version 2, else of 1.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.peak)
    """
    try:
        lines = [line.split(":", 2) for line in cgroup.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            file = mount / path.lstrip("/") / "memory.peak"
        elif "memory" in controllers.split(","):
            file = mount / "memory" / path.lstrip("/") / "memory.max_usage_in_bytes"
        else:
            continue
        try:
            return int(file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            continue
    return None


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def _percentile(ascending: Sequence[float], percent: int) -> float:
    """Returns the smallest reading that `percent` of all readings do not exceed (nearest rank)."""
    return ascending[max(0, -(-percent * len(ascending) // 100) - 1)]
