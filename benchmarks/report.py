"""What every benchmark prints: the machine, the versions, and tables in Markdown."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt

ISA_FLAGS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
"""Instruction sets that decide how fast matrices are multiplied, as Linux names them."""


def hardware() -> list[str]:
    """Returns Markdown lines: date, CPU, cores, caches, memory, instructions, load and GPUs."""
    found = _cpu_flags()
    flags = " ".join(flag for flag in ISA_FLAGS if flag in found) or "unknown"
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    lines = [
        f"- Date: {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC",
        f"- CPU: {_cpu_name()} ({platform.machine()}), {n_cores()} cores usable",
        f"- Cache: {_caches() or 'unknown'}",
        f"- Memory: {_memory_gib():.0f} GiB",
        f"- Instruction sets: {flags}",
        f"- Load average before the run (1, 5, 15 minutes): {load}",
        f"- System: {platform.system()} {platform.release()}, Python {platform.python_version()}",
    ]
    return lines + [f"- GPU: {gpu}" for gpu in _gpus()]


def usable_cores() -> set[int]:
    """Returns the numbers of the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def n_cores() -> int:
    """Returns how many cores this process may use."""
    return len(usable_cores())


def versions(*names: str) -> str:
    """Returns name and version of installed distributions, as in `torch 2.13.0, numpy 2.4.6`."""
    return ", ".join(f"{name} {_version(name)}" for name in names)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints an aligned Markdown table; columns of numbers are set to the right.

    Args:
        columns: headings.
        rows: cells; floats are printed with as many digits as their size deserves, None is empty.
    """
    texts = [[_cell(value) for value in row] for row in rows]
    widths = [
        max(3, *(len(text) for text in column)) for column in zip(columns, *texts, strict=True)
    ]
    right = [_is_numeric([row[index] for row in rows]) for index in range(len(columns))]
    print(_line(list(columns), widths, right))
    marks = [
        "-" * (width - 1) + (":" if to_right else "-")
        for width, to_right in zip(widths, right, strict=True)
    ]
    print("| " + " | ".join(marks) + " |")
    for row in texts:
        print(_line(row, widths, right))


def median_ratio(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Returns the median of per-round ratios, which a slow minute of the machine leaves alone.

    Args:
        values: one figure per round.
        baseline: figures of the baseline in the same rounds.
    """
    return statistics.median(value / base for value, base in zip(values, baseline, strict=True))


def least_cosine(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """Returns the smallest cosine of two vectors in the same row, both (n_rows, dim)."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((found * expected).sum(1) / lengths).min())


def _cell(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _is_numeric(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None and value != ""]
    return bool(present) and all(
        isinstance(value, int | float) or str(value)[:1].isdigit() for value in present
    )


def _line(texts: list[str], widths: list[int], right: list[bool]) -> str:
    cells = (
        text.rjust(width) if to_right else text.ljust(width)
        for text, width, to_right in zip(texts, widths, right, strict=True)
    )
    return "| " + " | ".join(cells) + " |"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_info(*keys: str) -> str:
    """Returns the first line of one of these keys in Linux's description of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return next((value.strip() for key, value in pairs if key.strip() in keys), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or "unknown"


def _cpu_flags() -> set[str]:
    return set(_cpu_info("flags", "Features").split())


def _caches() -> str:
    """Returns the caches that the first core sees, as in `L1d 32K, L2 1024K, L3 32768K`."""
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = (
            (folder / name).read_text(encoding="utf-8").strip()
            for name in ("level", "type", "size")
        )
        if kind != "Instruction":
            found.append(f"L{level}{'d' if kind == 'Data' else ''} {size}")
    return ", ".join(found)


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _gpus() -> list[str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()
