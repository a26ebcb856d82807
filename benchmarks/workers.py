"""The controller's side of a benchmark: starts one process per engine and asks it for passes."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from pathlib import Path
from typing import IO, Any

from catalogue import Engine
from environments import HERE, last_error
from report import usable_cores

READY_S = 900
PASS_S = 1800


class WorkerFailedError(Exception):
    """An engine did not start, died or took too long; the reason is one line."""


class Worker:
    """One engine in a process of its own.

    Attributes:
        versions: of the packages that matter, as the engine's environment has them.
    """

    def __init__(
        self, engine: Engine, *, python: Path, model: Path, threads: int, log: Path
    ) -> None:
        job = {
            "model": str(model),
            "dtype": engine.dtype,
            "batch": engine.batch,
            "threads": threads,
            "options": engine.options,
        }
        self._log = log
        self._answers: queue.Queue[str] = queue.Queue()
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                [str(python), str(HERE / "engines" / engine.script), json.dumps(job)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=variables(threads),
                text=True,
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        reader.start()
        try:
            self.versions: dict[str, str] = self._answer(READY_S)["versions"]
        except BaseException:
            self.stop()
            raise

    def seconds(self, corpus: Path) -> float:
        """Returns how long one pass over a corpus takes."""
        elapsed_s: float = self._ask(["go", str(corpus)])["seconds"]
        return elapsed_s

    def save(self, corpus: Path, vectors: Path) -> None:
        """Makes one untimed pass and keeps its vectors; it is the warm-up too."""
        self._ask(["save", str(corpus), str(vectors)])

    def stop(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()

    def _ask(self, request: list[str]) -> dict[str, Any]:
        try:
            print(json.dumps(request), file=self._requests, flush=True)
        except OSError as error:
            raise WorkerFailedError(self._reason()) from error
        return self._answer(PASS_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerFailedError(f"no answer within {timeout_s:.0f} s") from None
        if not line:
            raise WorkerFailedError(self._reason())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self._answers.put(line)
        self._answers.put("")

    def _reason(self) -> str:
        status = self._process.wait()
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return last_error(text) if text.strip() else f"exit status {status}"


def variables(threads: int) -> dict[str, str]:
    """Returns the environment of a worker: the same threads for all, and no network."""
    cores = sorted(usable_cores())[:threads]
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
    return {
        **os.environ,
        **dict.fromkeys(names, str(threads)),
        "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DO_NOT_TRACK": "1",
        "INFINITY_ANONYMOUS_USAGE_STATS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
