from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace.jobs.usage import UsageSampler

UUIDS = ("GPU-aaaa1111", "GPU-bbbb2222", "GPU-cccc3333")


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Callable[..., str]:
    """Returns a maker of a stand-in for nvidia-smi; each call of it leaves a line in `calls`."""

    def make(*lines: str, then: str = "") -> str:
        path = tmp_path / "nvidia-smi"
        shown = "\n".join(lines)
        path.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/calls\ncat <<'X'\n{shown}\nX\n{then}\n")
        path.chmod(0o755)
        return str(path)

    return make


def calls(tmp_path: Path) -> list[str]:
    path = tmp_path / "calls"
    return path.read_text().split() if path.exists() else []


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < timeout_s, "it did not happen in time"
        time.sleep(0.02)


def readings(*util: object) -> list[str]:
    return [f"{i}, {UUIDS[i]}, {value}, {1000 * (i + 1)}, 81559" for i, value in enumerate(util)]


def test_usage_without_nvidia_smi_has_host_facts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with UsageSampler() as sampler:
        sum(i * i for i in range(300_000))
    usage = sampler.stop()
    assert usage["samples"] == 0
    assert usage["cpu_s"] > 0
    assert usage["host_mem_peak_mb"] > 5
    assert not [key for key in usage if key.startswith("gpu")]


@pytest.mark.parametrize(
    ("visible", "gpus", "mean"),
    [
        (None, 3, 50.0),
        ("1", 1, 50.0),
        ("0,2", 2, 50.0),
        ("GPU-cccc", 1, 90.0),
        ("2,-1,0", 1, 90.0),
    ],
)
def test_usage_counts_the_visible_gpus_alone(
    nvidia_smi: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    visible: str | None,
    gpus: int,
    mean: float,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    sampler = UsageSampler(interval_s=0.01, nvidia_smi=nvidia_smi(*readings(10, 50, 90)))
    with sampler:
        wait_for(lambda: len(calls(tmp_path)) >= 3)
    usage = sampler.stop()
    assert usage["gpus"] == gpus
    assert usage["gpu_util_mean"] == mean
    assert usage["samples"] >= 1


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_usage_of_a_task_without_gpus_asks_nobody(
    nvidia_smi: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with UsageSampler(interval_s=0.01, nvidia_smi=nvidia_smi(*readings(10))):
        time.sleep(0.2)
    assert calls(tmp_path) == []


def test_usage_of_a_mig_part_has_no_gpu_facts(
    nvidia_smi: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-12345678-aaaa")
    sampler = UsageSampler(interval_s=0.01, nvidia_smi=nvidia_smi(*readings("[N/A]")))
    with sampler:
        wait_for(lambda: len(calls(tmp_path)) >= 2)
    assert not [key for key in sampler.stop() if key.startswith("gpu")]


def test_usage_of_unknown_utilisation_still_has_memory(
    nvidia_smi: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sampler = UsageSampler(interval_s=0.01, nvidia_smi=nvidia_smi(*readings("[N/A]", "[N/A]")))
    with sampler:
        wait_for(lambda: len(calls(tmp_path)) >= 2)
    usage = sampler.stop()
    assert (usage["gpu_mem_peak_mb"], usage["gpu_mem_total_mb"]) == (2000, 81559)
    assert "gpu_util_mean" not in usage


def test_usage_of_failing_nvidia_smi_asks_once(
    nvidia_smi: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sampler = UsageSampler(interval_s=0.01, nvidia_smi=nvidia_smi("no devices", then="exit 9"))
    with sampler:
        wait_for(lambda: calls(tmp_path))
        time.sleep(0.3)
    assert len(calls(tmp_path)) == 1
    assert sampler.stop()["samples"] == 0


def test_usage_stop_kills_a_hanging_query_at_once(
    nvidia_smi: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sampler = UsageSampler(nvidia_smi=nvidia_smi(then="exec sleep 60"))
    sampler.start()
    wait_for(lambda: calls(tmp_path))
    begun = time.monotonic()
    usage = sampler.stop()
    assert time.monotonic() - begun < 5
    assert usage is sampler.stop()
    (pid,) = calls(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_usage_percentiles_are_readings() -> None:
    from chatspace.jobs.usage import _percentile

    ascending = [float(i) for i in range(1, 11)]
    assert [_percentile(ascending, p) for p in (10, 50, 90)] == [1, 5, 9]
    assert _percentile([7.0], 10) == 7.0


def test_usage_reads_the_peak_of_this_version_of_cgroups(tmp_path: Path) -> None:
    from chatspace.jobs.usage import _cgroup_peak_bytes

    mount = tmp_path / "fs"
    (mount / "memory" / "job_1").mkdir(parents=True)
    (mount / "memory" / "job_1" / "memory.max_usage_in_bytes").write_text("4096\n")
    (mount / "job_2").mkdir()
    (mount / "job_2" / "memory.peak").write_text("8192\n")
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("4:memory:/job_1\n0::/\n")
    assert _cgroup_peak_bytes(cgroup, mount) == 4096
    cgroup.write_text("0::/job_2\n")
    assert _cgroup_peak_bytes(cgroup, mount) == 8192
    cgroup.write_text("0::/nowhere\n")
    assert _cgroup_peak_bytes(cgroup, mount) is None
