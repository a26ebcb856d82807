"""The container definition as text; tests/slurm/test_environment.py builds its CPU variant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_jobs_render import check_shell

TEXT = (Path(__file__).parents[1] / "hpc" / "chatspace.def").read_text(encoding="utf-8")
# Source: https://apptainer.org/docs/user/main/definition_files.html
KNOWN = {
    "arguments", "setup", "files", "post", "environment", "test", "runscript", "startscript",
    "labels", "help",
}  # fmt: skip


def sections() -> dict[str, str]:
    """Returns the text of each section; what stands before the first is the header."""
    parts = re.split(r"^%(\w+)[^\n]*\n", TEXT, flags=re.MULTILINE)
    assert len(parts[1::2]) == len(set(parts[1::2]))
    return {"header": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def arguments() -> dict[str, str]:
    return dict(re.findall(r"^\s*(\w+)=(\S+)$", sections()["arguments"], re.MULTILINE))


def test_definition_has_only_sections_that_apptainer_knows() -> None:
    assert set(sections()) - {"header"} <= KNOWN
    assert {"labels", "help", "post", "environment", "test"} <= set(sections())


def test_definition_begins_with_its_bootstrap_agent() -> None:
    keys = re.findall(r"^(\w+): \S", sections()["header"], re.MULTILINE)
    assert TEXT.startswith("Bootstrap: ")
    assert keys == ["Bootstrap", "From"]


def test_definition_every_variable_has_a_default_and_every_default_is_used() -> None:
    assert set(re.findall(r"{{ (\w+) }}", TEXT)) == set(arguments())


def test_definition_takes_cuda_at_a_pinned_version() -> None:
    assert arguments()["BOOTSTRAP"] == "docker"
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d+\.\d+", arguments()["BASE"])


@pytest.mark.parametrize("name", ["post", "environment", "test"])
def test_definition_shell_sections_pass_shellcheck(name: str, tmp_path: Path) -> None:
    check_shell(f"#!/bin/sh\n{sections()[name]}", tmp_path)


def test_definition_installs_no_python_packages() -> None:
    assert not re.search(r"pip3? install|torch", sections()["post"])
