"""How busy the GPUs are while a benchmark runs, as their driver sees it."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from contextlib import suppress


class GpuLoad:
    """Samples how busy the GPUs are, ten times a second, as `nvidia-smi` says.

    Covered: any kernel at all counts as busy; how much of the GPU it uses is not seen.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._since = time.perf_counter()

    @classmethod
    def start(cls) -> GpuLoad | None:
        """Returns a running sampler; None where there is no `nvidia-smi`."""
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        process = subprocess.Popen(
            [command, *query], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        return cls(process)

    def share(self, since: float, until: float) -> float | None:
        """Returns the busy share, 0 to 1, between two readings of `perf_counter`."""
        found = [busy for at, busy in self._samples if since <= at <= until]
        return statistics.fmean(found) / 100 if found else None

    def stop(self) -> float | None:
        """Ends the sampling and returns the share since its start."""
        share = self.share(self._since, time.perf_counter())
        self._process.terminate()
        self._process.wait(timeout=10)
        self._thread.join(timeout=10)
        return share

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):  # a GPU that cannot say so answers in words
                self._samples.append((time.perf_counter(), float(line)))
