from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.jobs.setup import plan_run, set_up
from chatspace.openai_embed.catalogue import KNOWN, PRICES_OF, usd_per_million
from chatspace.openai_embed.client import Client, is_too_long
from chatspace.openai_embed.endpoint import OPENAI_URL, find_endpoint, find_key, redacted
from chatspace.openai_embed.resolve import resolve_model
from chatspace.openai_embed.spec import ModelSection, RequestsSection
from chatspace.openai_embed.work import tasks_at_once
from chatspace.spec.loading import load_spec
from tests.openai_runs import spec_of, spec_values
from tests.openai_server import FakeOpenAI


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the variables nor the .env of whoever runs this."""
    monkeypatch.chdir(tmp_path)
    for name in ("OPENAI_BASE_URL", "OPENAI_EMBED_MODEL", "OPENAI_TIMEOUT", "OPENAI_API_VERSION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AZURE_OPENAI_ENDPOINT", raising=False)


NOWHERE = FakeOpenAI(url="http://127.0.0.1:9/v1")


def test_plan_asks_for_one_task_without_a_gpu(tmp_path: Path) -> None:
    plan = plan_run(spec_of(tmp_path, NOWHERE))
    assert [len(split.slices) for split in plan.splits] == [1]
    assert plan.cluster["gpus_per_task"] == 0
    assert not plan.cluster["nv"]


def test_set_up_writes_a_script_without_gpu_directives(tmp_path: Path) -> None:
    (script,) = set_up(spec_of(tmp_path, NOWHERE)).scripts
    assert script.name == "openai.slurm"
    assert "gpu" not in script.read_text().lower()
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=10)


@pytest.mark.parametrize(
    ("sections", "is_same"),
    [
        ({"model": {"base_url": "http://127.0.0.1:10/v1"}}, True),
        ({"requests": {"mode": "batch", "concurrency": 1, "tokens_per_min": 5}}, True),
        ({"spending": {"sample_rows": 1}}, True),
        ({"slices": {"count": 3}}, True),
        ({"model": {"name": "other"}}, False),
        ({"model": {"dimensions": 8}}, False),
        ({"model": {"max_tokens": 8}}, False),
        ({"model": {"on_too_long": "skip"}}, False),
        ({"model": {"long_text": "truncate"}}, True),
        ({"model": {"long_text": "skip"}}, False),
        ({"output": {"dtype": "float16"}}, False),
    ],
)
def test_plan_hash_is_about_what_is_computed(
    tmp_path: Path, sections: dict[str, Any], is_same: bool
) -> None:
    plain = plan_run(spec_of(tmp_path, NOWHERE))
    other = plan_run(spec_of(tmp_path, NOWHERE, **sections))
    assert (plain.run_id == other.run_id) == is_same


def test_plan_names_model_and_endpoint_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_EMBED_MODEL", "BAAI/bge-small-en-v1.5")
    monkeypatch.setenv("OPENAI_TIMEOUT", "7.5")
    (tmp_path / ".env").write_text("OPENAI_BASE_URL=http://localhost:8000/v1/\n")
    unset = {"name": None, "base_url": None}
    spec = spec_of(tmp_path, NOWHERE, model=unset, requests={"timeout_s": None})
    model = resolve_model(spec)
    assert model["name"] == "BAAI/bge-small-en-v1.5"
    assert model["label"] == "BAAI__bge-small-en-v1.5"
    assert (model["base_url"], model["timeout_s"]) == ("http://localhost:8000/v1", 7.5)


def test_endpoint_is_openai_where_nobody_names_one() -> None:
    endpoint = find_endpoint(ModelSection(), RequestsSection(), {})
    assert (endpoint.provider, endpoint.base_url) == ("openai", OPENAI_URL)
    assert endpoint.needs_key


@pytest.mark.parametrize(
    ("model", "variables", "said"),
    [
        ({"base_url": "localhost:8000"}, {}, r"Not an address: model\.base_url"),
        ({"base_url": "sk-0123456789abcdef"}, {}, r"Not an address: model\.base_url"),
        ({"base_url": "http://h:99999/v1"}, {}, "Not an address"),
        ({"base_url": "https://me:pw@host/v1"}, {}, "Secret in an address"),
        ({"base_url": "https://host/v1?key=abc"}, {}, "Secret in an address"),
        ({}, {"OPENAI_BASE_URL": "nonsense"}, "Not an address: OPENAI_BASE_URL"),
        ({}, {"OPENAI_TIMEOUT": "soon"}, "OPENAI_TIMEOUT='soon'"),
        ({}, {"OPENAI_TIMEOUT": "0"}, "expected seconds above 0"),
        ({"provider": "azure"}, {}, "AZURE_OPENAI_ENDPOINT is not set"),
        ({}, {"AZURE_OPENAI_ENDPOINT": "https://x.azure.com"}, "OPENAI_API_VERSION"),
    ],
)
def test_endpoint_that_is_none_is_refused_without_repeating_it(
    model: dict[str, Any], variables: dict[str, str], said: str
) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        find_endpoint(ModelSection(**model), RequestsSection(), variables)
    message = str(caught.value)
    assert "\n" not in message
    assert not any(secret in message for secret in ("sk-0123", "pw@", "abc"))


def test_azure_has_no_batch_mode() -> None:
    variables = {"AZURE_OPENAI_ENDPOINT": "https://x.azure.com", "OPENAI_API_VERSION": "1"}
    with pytest.raises(SpecError, match="Not possible"):
        find_endpoint(ModelSection(), RequestsSection(mode="batch"), variables)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"spending": {"execute": False}}, "Nothing is spent unasked"),
        ({"model": {"name": None}}, "Which model"),
        ({"model": {"name": "text-embedding-ada-002", "dimensions": 5}}, "1536 and no other"),
        ({"model": {"name": "text-embedding-3-small", "dimensions": 1537}}, "at most 1536"),
        ({"requests": {"max_inputs": 2049}}, "2048"),
        ({"requests": {"max_request_tokens": 300_001}}, "300000"),
        ({"requests": {"concurency": 2}}, "Did you mean concurrency"),
        ({"model": {"on_too_long": "drop"}}, "truncate"),
        ({"model": {"long_text": "drop"}}, "expected one of truncate, error, skip, chunk"),
        ({"model": {"long_text": "skip", "chunk_tokens": 9}}, "only where rows are cut into chun"),
        ({"model": {"document_vector": True}}, "document_vector: only where rows are cut"),
        ({"model": {"long_text": "chunk", "chunk_tokens": 8192}}, "is above max_tokens=8191"),
        ({"model": {"long_text": "chunk", "on_too_long": "skip"}}, "leaves no row too long; leave"),
        ({"model": {"long_text": "skip", "on_too_long": "error"}}, "are one key; keep one"),
    ],
)
def test_spec_that_is_wrong_is_refused_in_one_line(
    tmp_path: Path, sections: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said) as caught:
        plan_run(spec_of(tmp_path, NOWHERE, **sections))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["truncate", "skip", "error"])
def test_long_text_is_another_name_of_on_too_long(tmp_path: Path, how: str) -> None:
    one = plan_run(spec_of(tmp_path, NOWHERE, model={"on_too_long": how}))
    other = plan_run(spec_of(tmp_path, NOWHERE, model={"long_text": how}))
    assert one.plan_sha256 == other.plan_sha256
    assert other.spec["model"]["on_too_long"] == how


def test_keys_of_chunks_that_are_off_are_no_part_of_a_run(tmp_path: Path) -> None:
    off = {"overlap_tokens": 0, "document_vector": False}
    plain = plan_run(spec_of(tmp_path, NOWHERE))
    assert plan_run(spec_of(tmp_path, NOWHERE, model=off)).plan_sha256 == plain.plan_sha256
    chunks = {"long_text": "chunk", "chunk_tokens": 64}
    cut = plan_run(spec_of(tmp_path, NOWHERE, model=chunks))
    same = plan_run(spec_of(tmp_path, NOWHERE, model={**chunks, **off}))
    other = plan_run(spec_of(tmp_path, NOWHERE, model={**chunks, "document_vector": True}))
    assert same.plan_sha256 == cut.plan_sha256
    assert len({plain.plan_sha256, cut.plan_sha256, other.plan_sha256}) == 3


def test_slices_that_are_asked_for_are_made(tmp_path: Path) -> None:
    slices = {"rows_per_slice": 20}
    plan = plan_run(spec_of(tmp_path, NOWHERE, slices=slices))
    assert len(plan.splits[0].slices) == 3
    assert tasks_at_once(plan, plan.splits[0]) == 3
    plan = plan_run(spec_of(tmp_path, NOWHERE, slices=slices, slurm={"array_parallelism": 2}))
    assert tasks_at_once(plan, plan.splits[0]) == 2
    assert tasks_at_once(plan, None) == 1


def test_prices_are_dated_and_unknown_where_nobody_knows() -> None:
    assert PRICES_OF[:2] == "20"
    assert usd_per_million("text-embedding-3-small", "direct") == 0.02
    assert usd_per_million("text-embedding-3-small", "batch") == 0.01
    assert usd_per_million("BAAI/bge", "direct") is None
    assert all(model.usd_per_million > 0 and model.dim > 0 for model in KNOWN.values())


def test_redacted_leaves_no_key() -> None:
    said = "bad sk-abcdefgh12345 and \n MYKEY and sk-ab***********yz"
    assert redacted(said, "MYKEY") == "bad *** and *** and ***"
    assert redacted("none of them", "none") == "none of them"


@pytest.mark.parametrize(
    "key", ["\u201csk-abc\u201d", "sk-abc\nsk-def", "sk abc", "sk-\x00abc", "clé"]
)
def test_find_key_refuses_what_is_no_key_and_does_not_show_it(key: str) -> None:
    endpoint = find_endpoint(ModelSection(), RequestsSection(), {})
    with pytest.raises(UnfitEnvironmentError, match="Not a key: OPENAI_API_KEY") as caught:
        find_key(endpoint, {"OPENAI_API_KEY": key})
    said = str(caught.value)
    assert "\n" not in said and "sk" not in said and "abc" not in said
    assert find_key(endpoint, {"OPENAI_API_KEY": " sk-abc\n"}) == "sk-abc"


def test_setup_of_the_repository_is_a_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    spec = load_spec(Path(__file__).parents[1] / "setups" / "openai.yaml")
    assert spec.kind == "embed_openai"
    assert not spec.spending.execute  # type: ignore[attr-defined]


def test_planning_and_estimating_import_no_client(tmp_path: Path) -> None:
    spec_of(tmp_path, NOWHERE)  # writes the rows
    code = f"""
import sys
from pathlib import Path
from chatspace.jobs.setup import plan_run
from chatspace.kinds import KINDS
from chatspace.spec.loading import spec_from_mapping
plan = plan_run(spec_from_mapping({spec_values(tmp_path, NOWHERE)!r}, "test"))
assert KINDS["embed_openai"].dry_run()(plan)
print({{"openai", "tiktoken", "torch", "duckdb"}} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "set()\n", "")


def test_client_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    endpoint = find_endpoint(ModelSection(), RequestsSection(), {})
    with pytest.raises(UnfitEnvironmentError, match=r"pip install 'chatspace\[openai\]'"):
        Client(endpoint, "key")


@pytest.mark.parametrize(
    "said",
    [
        "This model's maximum context length is 8192 tokens, however you requested 9000 tokens",
        "Invalid 'input[3]': maximum context length is 8192 tokens.",
        "Requested 310000 tokens, max 300000 tokens per request: max_tokens_per_request",
        "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
        "batch size 40 > maximum allowed batch size 32",
        "This model's maximum input length is 512, got 600",
        "The sequence length of 600 exceeds the maximum of 512",
        "Input is too long for the requested model",
        "The input (600 tokens) is longer than the model's context length (512 tokens)",
    ],
)
def test_is_too_long_knows_what_servers_say(said: str) -> None:
    assert is_too_long(said)


@pytest.mark.parametrize(
    "said",
    [
        "The model `x` does not exist",
        "'dimensions' is not supported",
        "Invalid JSON",
        "Invalid 'dimensions': 2048 exceeds the maximum limit of 1536",
        "Request rate exceeded your limit",
        "model's embedding length 512 exceeds the configured limit",
    ],
)
def test_is_too_long_is_about_nothing_else(said: str) -> None:
    assert not is_too_long(said)


def test_is_too_long_of_another_field_than_the_input_is_false() -> None:
    said = "maximum context length is 512 tokens"
    assert not is_too_long(said, param="dimensions")
    assert is_too_long(said, param="input[3]")
    assert is_too_long("no", "context_length_exceeded")
