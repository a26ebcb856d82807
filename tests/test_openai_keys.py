from __future__ import annotations

import os
from pathlib import Path

import pytest

from chatspace.api import submit
from chatspace.errors import SpecError, UnfitEnvironmentError
from tests.openai_runs import check_vectors, plan_of, run_here, spec_of, start_task
from tests.openai_server import KEY, FakeOpenAI, Fault


def test_key_stands_in_no_file_and_no_message(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-99999999999999999999"
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    plan = plan_of(tmp_path, server)
    with pytest.raises(UnfitEnvironmentError, match="Key refused") as caught:
        run_here(plan)
    failing = start_task(plan)
    said = failing.communicate(timeout=60)[1].decode()
    assert failing.returncode == 4
    assert "Key refused" in said
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.faults.append(Fault("status", status=500, message=f"secret {KEY} is in here"))
    task = start_task(plan)
    said += task.communicate(timeout=60)[1].decode()
    assert task.returncode == 0
    check_vectors(plan)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 8
    for key in (wrong, KEY):
        assert not any(key.encode() in content for content in written)
        assert key not in said + str(caught.value)


def test_run_without_a_key_that_is_needed_fails(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    plan = plan_of(tmp_path, server, model={"base_url": "https://api.openai.com/v1"})
    with pytest.raises(UnfitEnvironmentError, match="No key: OPENAI_API_KEY is not set"):
        run_here(plan)


def test_submit_without_a_key_that_is_needed_starts_nothing(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    spec = spec_of(tmp_path, server, model={"base_url": "https://api.openai.com/v1"})
    with pytest.raises(UnfitEnvironmentError, match="No key: OPENAI_API_KEY is not set"):
        submit(spec, executor="local")
    assert not (tmp_path / "ws").exists()


def test_server_that_wants_no_key_gets_none(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    server.key = None
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)


def test_key_comes_from_the_env_file(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    (tmp_path / ".env").write_text(f"OPENAI_API_KEY={KEY}\n")
    plan = plan_of(tmp_path, server)
    run_here(plan)
    check_vectors(plan)
    assert "OPENAI_API_KEY" not in os.environ


def test_azure_is_asked_by_deployment_and_version(
    server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", server.url.removesuffix("/v1"))
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-account")
    plan = plan_of(tmp_path, server, model={"base_url": None, "api_version": "2024-10-21"})
    run_here(plan)
    check_vectors(plan)
    assert set(server.paths) == {"/openai/deployments/tiny/embeddings?api-version=2024-10-21"}


def test_run_slice_without_leave_to_spend_sends_nothing(server: FakeOpenAI, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spending\.execute=false"):
        plan_of(tmp_path, server, spending={"execute": False})
    assert server.paths == []
