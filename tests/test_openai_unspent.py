"""Commands of a spec that may not spend yet: what looks goes on, what would pay is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.openai_runs import plan_of, spec_values
from tests.openai_server import FakeOpenAI
from tests.test_checks_doctor import bare_path

Command = Callable[..., tuple[int, str, str]]
NOTHING_TO_PROBE = (
    "chatspace: Nothing to probe: kind=embed_openai; a probe would pay for rows that it drops. "
    "`chatspace embed-dataset SPEC` says tokens, price and time.\n"
)


@pytest.fixture(autouse=True)
def spec_file(server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spec file `s.yaml` that does not say that money may be spent; no SLURM is here."""
    monkeypatch.setenv("PATH", str(bare_path(tmp_path)))
    values = spec_values(tmp_path, server)
    del values["spending"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))


@pytest.mark.parametrize("more", [(), ("--set", "spending.execute=true")])
@pytest.mark.parametrize("words", [("probe", "s.yaml"), ("setup", "s.yaml", "--use-probe")])
def test_probe_of_what_is_charged_is_refused_at_once(
    chatspace: Command, server: FakeOpenAI, tmp_path: Path, words: tuple[str, ...],
    more: tuple[str, ...],
) -> None:  # fmt: skip
    assert chatspace(*words, *more) == (2, "", NOTHING_TO_PROBE)
    assert server.paths == []
    assert not (tmp_path / "ws").exists()


def test_probe_of_a_run_that_is_charged_is_refused_at_once(
    chatspace: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server)
    folder = tmp_path / "ws" / "runs" / plan.run_id
    assert chatspace("probe", folder) == (2, "", NOTHING_TO_PROBE)


def test_doctor_of_a_spec_that_may_not_spend_looks_and_says_so(
    chatspace: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    code, said, errors = chatspace("doctor", "s.yaml", "--json")
    assert (code, errors) == (0, "")
    checks = {item["check"]: item for item in json.loads(said)["checks"]}
    assert {"plan", "key", "model", "dataset", "secrets"} <= checks.keys()
    assert checks["spending"]["state"] == "warn"
    assert checks["spending"]["seen"].startswith("spending.execute=false: ")
    assert "`chatspace embed-dataset s.yaml`" in checks["spending"]["next_step"]
    assert server.paths == []
    assert not (tmp_path / "ws" / "runs").exists()


def test_doctor_of_a_spec_that_may_spend_says_nothing_of_it(chatspace: Command) -> None:
    code, said, _ = chatspace("doctor", "s.yaml", "--json", "--set", "spending.execute=true")
    checks = {item["check"] for item in json.loads(said)["checks"]}
    assert code == 0 and "key" in checks and "spending" not in checks
