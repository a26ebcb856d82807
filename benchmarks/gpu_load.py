"""How busy one GPU is while a benchmark runs, as its driver sees it."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NOT_TOLD = "not told"
"""Stands in a table where the driver does not say, as of the parts of a GPU that MIG makes."""
SETTLE_S = 1.0
"""How far a reading looks back at most, so that those of a run's first second are left out.

Source: `man nvidia-smi`, utilization: the sample period is between 1 second and 1/6 second.
"""


class GpuLoad:
    """Samples how busy a GPU is, ten times a second, as `nvidia-smi` says.

    Covered: any kernel at all counts as busy; how much of the GPU it uses is not seen.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._samples: list[tuple[float, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._since = time.perf_counter()

    @classmethod
    def start(cls, gpu: str) -> GpuLoad | None:
        """Returns a running sampler of the GPU `gpu_id`; None where there is no `nvidia-smi`."""
        command = shutil.which("nvidia-smi")
        if command is None:
            return None
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        process = subprocess.Popen(
            [command, "-i", gpu, *query],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return cls(process)

    def share(self, since: float, until: float) -> float | None:
        """Returns the busy share, 0 to 1, between two readings of `perf_counter`.

        None if there is none to tell: less than `SETTLE_S` between them, or a silent driver.
        """
        found = [busy for at, busy in self._samples if since + SETTLE_S <= at <= until]
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


def gpu_id(device: torch.device | str) -> str:
    """Returns the name of a device for `nvidia-smi`, however CUDA_VISIBLE_DEVICES counts them."""
    import torch

    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"
