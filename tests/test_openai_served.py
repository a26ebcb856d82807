from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import InputError, ModelError
from chatspace.kinds import KINDS
from chatspace.layout import Layout
from chatspace.openai_embed.answers import BadAnswerError
from chatspace.openai_embed.served import Served, keep_served, read_served
from chatspace.plan.model import Plan
from tests.openai_runs import check_vectors, plan_of, rows_of, run_here, runtime_of
from tests.openai_server import FakeOpenAI, Fault
from tests.test_openai_asking import Refusing, asker_of
from tests.test_openai_limits import Clock


def test_answers_of_another_model_are_refused_until_the_first_is_back(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = plan_of(tmp_path, server, requests={"concurrency": 1})
    server.faults.extend([Fault("shuffle")] * 2 + [Fault("status", status=400)] * 9)
    with pytest.raises(InputError):
        run_here(plan)
    server.faults.clear()
    server.dim = 8
    with pytest.raises(ModelError, match=r"now gives 8 numbers \(tiny\), the run began with 16 "):
        run_here(plan)
    server.dim = 16
    run_here(plan)
    check_vectors(plan)


def begun(server: FakeOpenAI, tmp_path: Path, **sections: Any) -> Plan:
    """A run whose first shard is there, and none of whose further answers."""
    plan = plan_of(tmp_path, server, requests={"concurrency": 1}, **sections)
    server.faults.extend([Fault("shuffle")] * 4 + [Fault("status", status=400)] * 9)
    with pytest.raises(InputError):
        run_here(plan)
    server.faults.clear()
    assert (server.n_requests, len(rows_of(plan))) == (5, 20)
    return plan


@pytest.mark.parametrize("change", [{"dim": 8}, {"model": "large"}, {"dim": 8, "model": "tiny"}])
def test_other_model_after_a_finished_shard_is_refused_by_its_first_answer(
    server: FakeOpenAI, tmp_path: Path, change: dict[str, Any]
) -> None:
    plan = begun(server, tmp_path)
    for name, value in change.items():
        setattr(server, name, value)
    with pytest.raises(ModelError, match=r"Another model: .* the run began with 16 numbers \(tiny"):
        run_here(plan)
    assert (server.n_requests, len(rows_of(plan))) == (6, 20)
    server.dim, server.model = 16, None
    run_here(plan)
    check_vectors(plan)
    assert runtime_of(plan)["served_model"] == "tiny"


def test_same_model_with_its_owner_before_its_name_goes_on(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = begun(server, tmp_path)
    server.model = "some-org/Tiny"
    run_here(plan)
    check_vectors(plan)


def test_other_length_is_seen_from_shards_where_the_note_is_gone(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = begun(server, tmp_path)
    Layout(Path(plan.workspace)).run(plan.run_id).served.unlink()
    server.dim = 8
    with pytest.raises(
        ModelError, match=r"gives 8 numbers \(tiny\), the run began with 16 numbers\."
    ):
        run_here(plan)
    server.dim, server.model = 16, "another-name"
    run_here(plan)
    check_vectors(plan)


def test_other_length_is_seen_although_shards_hold_less_of_it(
    server: FakeOpenAI, tmp_path: Path
) -> None:
    plan = begun(server, tmp_path, output={"truncate_dim": 4})
    server.dim = 8
    with pytest.raises(ModelError, match="Another model"):
        run_here(plan)


def test_other_model_in_a_batch_is_refused(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = begun(server, tmp_path)
    again = plan_of(tmp_path, server, requests={"mode": "batch", "concurrency": 1})
    assert again.run_id == plan.run_id
    server.dim = 8
    with pytest.raises(ModelError, match="Another model"):
        run_here(again)


def test_question_to_another_model_is_refused(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = begun(server, tmp_path)
    server.model = "large"
    with pytest.raises(ModelError, match="Another model"):
        KINDS["embed_openai"].query_encoder()(plan, ["a shard"], None)


def test_two_models_behind_one_address_are_wrong_answers() -> None:
    asker = asker_of(Clock(), Refusing(Clock(), None))
    data = [{"index": 0, "embedding": [1.0, 0.0]}]
    asker.read({"data": data, "model": "one"}, 1)
    asker.read({"data": data}, 1)  # an endpoint need not say
    with pytest.raises(BadAnswerError, match=r"2 numbers \(two\) where those of 2 numbers \(one\)"):
        asker.read({"data": data, "model": "two"}, 1)


def test_keep_served_keeps_the_first_and_refuses_others(server: FakeOpenAI, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, server)
    assert read_served(plan) is None
    keep_served(plan, Served(model="tiny", dim=16))
    keep_served(plan, Served(model=None, dim=16))
    assert read_served(plan) == Served(model="tiny", dim=16)
    with pytest.raises(ModelError, match=r"gives 16 numbers \(big\)"):
        keep_served(plan, Served(model="big", dim=16))
