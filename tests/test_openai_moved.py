"""A run whose server has moved since it was planned: it goes on, and can be searched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import SpecError
from chatspace.jobs.gather import gather_run
from chatspace.openai_embed.endpoint import Endpoint, endpoint_now, find_endpoint
from chatspace.openai_embed.spec import ModelSection, RequestsSection
from chatspace.plan.model import Plan
from tests.conftest import texts
from tests.openai_runs import N_ROWS, check_vectors, plan_of, run_here, runtime_of
from tests.openai_server import FakeOpenAI, serving

DEAD = "http://127.0.0.1:9/v1"
OLD, NEW, AZURE = "http://old/v1", "http://new/v1", "https://x.azure.com"
AZURE_SET = {"AZURE_OPENAI_ENDPOINT": AZURE, "OPENAI_API_VERSION": "1"}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def elsewhere() -> Iterator[FakeOpenAI]:
    """The same server at another address."""
    with serving() as fake:
        yield fake


def now(
    spec: dict[str, Any], then: dict[str, str], today: dict[str, str], base_url: str | None = None
) -> Endpoint:
    """Where a run is asked that was planned with one environment, in another."""
    model, requests = ModelSection(**spec), RequestsSection()
    planned = asdict(find_endpoint(model, requests, then))
    sections = {"model": model.model_dump(), "requests": requests.model_dump()}
    return endpoint_now(planned, sections, today, base_url)


@pytest.mark.parametrize(
    ("spec", "then", "today", "expected"),
    [
        ({}, {}, {}, ("openai", "https://api.openai.com/v1", None)),
        ({}, {"OPENAI_BASE_URL": OLD}, {}, ("openai", OLD, None)),
        ({}, {"OPENAI_BASE_URL": OLD}, {"OPENAI_BASE_URL": ""}, ("openai", OLD, None)),
        ({}, {"OPENAI_BASE_URL": OLD}, {"OPENAI_BASE_URL": NEW}, ("openai", NEW, None)),
        ({}, {}, {"OPENAI_BASE_URL": NEW}, ("openai", NEW, None)),
        ({"base_url": OLD}, {}, {"OPENAI_BASE_URL": NEW}, ("openai", OLD, None)),
        ({"base_url": OLD}, {}, AZURE_SET, ("openai", OLD, None)),
        ({}, {"OPENAI_BASE_URL": OLD}, AZURE_SET, ("azure", AZURE, "1")),
        ({}, AZURE_SET, {}, ("azure", AZURE, "1")),
        ({}, AZURE_SET, {"OPENAI_BASE_URL": NEW}, ("openai", NEW, None)),
        ({}, AZURE_SET, {"OPENAI_API_VERSION": "2"}, ("azure", AZURE, "2")),
        ({"provider": "azure"}, AZURE_SET, {"OPENAI_BASE_URL": NEW}, ("azure", AZURE, "1")),
        ({"provider": "azure"}, AZURE_SET, {"AZURE_OPENAI_ENDPOINT": NEW}, ("azure", NEW, "1")),
        ({"provider": "openai"}, {"OPENAI_BASE_URL": OLD}, AZURE_SET, ("openai", OLD, None)),
    ],
)
def test_endpoint_now_is_that_of_the_spec_else_of_today_else_of_the_plan(
    spec: dict[str, Any],
    then: dict[str, str],
    today: dict[str, str],
    expected: tuple[str, str, str | None],
) -> None:
    found = now(spec, then, today)
    assert (found.provider, found.base_url, found.api_version) == expected


@pytest.mark.parametrize(
    ("spec", "then", "provider"),
    [({"base_url": OLD}, {}, "openai"), ({}, {}, "openai"), ({}, AZURE_SET, "azure")],
)
def test_endpoint_now_with_an_address_of_whoever_asks_goes_before_all(
    spec: dict[str, Any], then: dict[str, str], provider: str
) -> None:
    found = now(spec, then, {"OPENAI_BASE_URL": OLD}, f"{NEW}/")
    assert (found.base_url, found.provider) == (NEW, provider)
    with pytest.raises(SpecError, match="Not an address: --base-url"):
        now(spec, then, {}, "localhost:8000")


def test_endpoint_now_takes_the_timeout_of_today_unless_the_spec_says_one() -> None:
    assert now({}, {"OPENAI_TIMEOUT": "7.5"}, {}).timeout_s == 7.5
    assert now({}, {"OPENAI_TIMEOUT": "7.5"}, {"OPENAI_TIMEOUT": "9"}).timeout_s == 9


def finished_run(
    folder: Path, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, *, is_named: bool
) -> Plan:
    """A run whose spec names its server, or has it from the environment; the server is gone now."""
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    model = {} if is_named else {"base_url": None}
    plan = plan_of(folder, server, model=model)
    run_here(plan)
    gather_run(plan)
    server.key = "another, so that whoever asks here fails"
    return plan


def folder_of(plan: Plan) -> Path:
    return Path(plan.workspace) / "runs" / plan.run_id


@pytest.mark.parametrize("how", ["environment", "file"])
def test_search_asks_where_the_environment_of_whoever_asks_says(
    server: FakeOpenAI, elsewhere: FakeOpenAI, tmp_path: Path, chatspace: Command,
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    plan = finished_run(tmp_path, server, monkeypatch, is_named=False)
    if how == "file":
        monkeypatch.delenv("OPENAI_BASE_URL")
        (tmp_path / ".env").write_text(f"OPENAI_BASE_URL={elsewhere.url}\n")
    else:
        monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    text = texts(N_ROWS)[7]
    code, said, errors = chatspace("search", folder_of(plan), text, "-k", "1")
    assert (code, errors) == (0, f"note: One request was sent to {elsewhere.url}.\n")
    assert said.startswith(" 1.0000")


def test_search_keeps_the_address_of_the_spec_and_takes_another_when_told(
    server: FakeOpenAI, elsewhere: FakeOpenAI, tmp_path: Path, chatspace: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plan = finished_run(tmp_path, server, monkeypatch, is_named=True)
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    words = ("search", folder_of(plan), texts(N_ROWS)[7], "-k", "1")
    code, said, errors = chatspace(*words)
    assert (code, said, elsewhere.n_requests) == (4, "", 0)
    assert errors.startswith("chatspace: Key refused: ")
    code, said, _ = chatspace(*words, "--base-url", elsewhere.url)
    assert code == 0 and said.startswith(" 1.0000")
    code, said, errors = chatspace(*words, "--base-url", "nonsense")
    assert (code, said) == (2, "")
    assert errors.startswith("chatspace: Not an address: --base-url; ")


def test_search_without_an_answer_says_how_to_name_another_address(
    server: FakeOpenAI, tmp_path: Path, chatspace: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = finished_run(tmp_path, server, monkeypatch, is_named=True)
    code, _, errors = chatspace("search", folder_of(plan), "x", "--base-url", DEAD)
    assert code == 4 and errors.count("\n") == 1
    assert "No answer: tiny; 2 attempts" in errors and DEAD in errors
    assert "name its address with --base-url URL" in errors


def test_search_with_the_id_of_a_row_takes_no_address(
    server: FakeOpenAI, tmp_path: Path, chatspace: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = finished_run(tmp_path, server, monkeypatch, is_named=True)
    code, _, errors = chatspace("search", folder_of(plan), "--like", "x", "--base-url", DEAD)
    assert (code, errors.partition(";")[0]) == (2, "chatspace: --base-url is for a text")


def test_run_goes_on_where_the_environment_says_now(
    server: FakeOpenAI, elsewhere: FakeOpenAI, tmp_path: Path, chatspace: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_BASE_URL", DEAD)
    plan = plan_of(tmp_path, server, model={"base_url": None})
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    code, _, errors = chatspace("run", folder_of(plan))
    assert code == 0, errors
    check_vectors(plan)
    assert runtime_of(plan)["endpoint"] == elsewhere.url


def test_run_at_a_server_that_needs_no_key_is_not_asked_for_one(
    server: FakeOpenAI, elsewhere: FakeOpenAI, tmp_path: Path, chatspace: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It was planned for OpenAI itself, which needs one."""
    plan = plan_of(tmp_path, server, model={"base_url": None})
    assert plan.model["base_url"] == "https://api.openai.com/v1"
    elsewhere.key = None
    monkeypatch.delenv("OPENAI_API_KEY")
    code, _, errors = chatspace("run", folder_of(plan))
    assert code == 4 and "No key: OPENAI_API_KEY is not set" in errors
    monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
    assert chatspace("run", folder_of(plan))[0] == 0
    check_vectors(plan)
