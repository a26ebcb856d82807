from __future__ import annotations

from pathlib import Path

import pytest

from chatspace.env import read_env_file, variables
from chatspace.errors import SpecError


def test_read_env_file_takes_quotes_export_and_comments(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "# a comment\n\nA=1\nexport B = two words  # and why\nC='x # y'\n"
        'D="sk-a=b"\nE=\nF=a#b\nG="q" # said\n'
    )
    assert read_env_file(path) == {
        "A": "1", "B": "two words", "C": "x # y", "D": "sk-a=b", "E": "", "F": "a#b", "G": "q",
    }  # fmt: skip


@pytest.mark.parametrize("line", ["sk-secret-value", "A B=1", "1A=2", "=x"])
def test_read_env_file_with_a_wrong_line_names_it_and_not_its_text(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / ".env"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(SpecError, match=r"\.env:2; expected NAME=value") as caught:
        read_env_file(path)
    assert line not in str(caught.value)


def test_read_env_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="Cannot be read"):
        read_env_file(path)


def test_variables_of_the_file_never_override_what_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SET", "outside")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("NEW", raising=False)
    (tmp_path / ".env").write_text("SET=file\nEMPTY=file\nNEW=file\n")
    found = variables()
    assert (found["SET"], found["EMPTY"], found["NEW"]) == ("outside", "", "file")


def test_variables_in_a_job_come_from_where_it_was_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / ".env").write_text("NEW=there\n")
    monkeypatch.chdir(tmp_path / "run")
    monkeypatch.delenv("NEW", raising=False)
    assert "NEW" not in variables()
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path / "home"))
    assert variables()["NEW"] == "there"
    (tmp_path / "run" / ".env").write_text("NEW=here\n")
    assert variables()["NEW"] == "here"
