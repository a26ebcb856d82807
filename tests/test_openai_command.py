from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from chatspace.api import open_run
from chatspace.cli import main
from tests.openai_runs import N_ROWS, spec_values
from tests.openai_server import FakeOpenAI

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def server(server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOpenAI:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "no-encodings"))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # offline: the way out is closed
    return server


@pytest.fixture
def embed_dataset(
    server: FakeOpenAI,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """The command, with a spec file `s.yaml` that does not say that money may be spent."""
    values = spec_values(tmp_path, server)
    del values["spending"]
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(values))

    def run(*words: str, command: str = "embed-dataset") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["chatspace", command, *words])
        with pytest.raises(SystemExit) as end:
            main()
        said, errors = capfd.readouterr()
        return int(end.value.code or 0), said, errors

    return run


def test_dry_run_sends_and_writes_nothing(
    embed_dataset: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    code, said, errors = embed_dataset("s.yaml", "--set", "model.name=text-embedding-3-small")
    assert (code, errors) == (0, "")
    assert "rows      60\n" in said
    assert "estimated as UTF-8 bytes / 4 (tiktoken's file of cl100k_base is neither in" in said
    assert "cannot be reached: ProxyError), all rows\n" in said
    tokens, least, most = (
        int(number.replace(",", ""))
        for number in re.findall(r"tokens +([\d,]+);.*really ([\d,]+) to ([\d,]+) ", said, re.S)[0]
    )
    assert (least, most) == (round(0.8 * tokens), 2 * tokens)
    prices = [float(price) for price in re.findall(r"\$(0\.\d{6})", said)]
    assert prices == pytest.approx([n * 0.02 / 1e6 for n in (tokens, least, most)], abs=1e-6)
    assert "requests  12, 2 at a time" in said
    assert "at $0.02 for a million tokens, table of 20" in said
    assert "not known without your account's limits" in said
    assert "dry run: nothing was sent" in said
    assert server.paths == []
    assert not (tmp_path / "ws" / "runs").exists()


def test_dry_run_of_a_sample_says_that_its_error_is_that_of_sampling(
    embed_dataset: Command, tmp_path: Path
) -> None:
    code, said, _ = embed_dataset("s.yaml", "--sample-rows", "20")
    assert code == 0
    assert re.search(r", 20 rows of a sample, sampling error \d+\.\d%\n", said)
    assert not (tmp_path / "ws" / "cache" / "tiktoken").exists()  # of a model it does not know


def test_dry_run_says_the_time_at_the_limits_that_are_given(embed_dataset: Command) -> None:
    _, said, _ = embed_dataset("s.yaml", "--set", "requests.requests_per_min=4")
    assert "at least 3 min, at 4 requests a minute" in said
    assert "price     not known: tiny is not in the table of" in said


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "requests.requests_per_min=4", "s.yaml"),
        ("--sample-rows", "20", "s.yaml", "--set", "requests.requests_per_min=4"),
        ("--set=requests.requests_per_min=4", "s.yaml", "--workers", "1"),
    ],
)
def test_spec_file_may_stand_anywhere(embed_dataset: Command, words: tuple[str, ...]) -> None:
    code, said, errors = embed_dataset(*words)
    assert (code, errors) == (0, "")
    assert "at 4 requests a minute" in said


def test_execute_before_the_file_runs_it(embed_dataset: Command, server: FakeOpenAI) -> None:
    code, said, errors = embed_dataset("--execute", "s.yaml")
    assert code == 0, errors
    assert f"{N_ROWS} rows, every one accounted for" in said
    assert server.n_requests > 0


@pytest.mark.parametrize("words", [("--set", "a.b=c"), ("--set", "slurm.profile=x.yaml")])
def test_set_without_a_file_says_what_is_missing(
    embed_dataset: Command, words: tuple[str, ...]
) -> None:
    code, said, errors = embed_dataset(*words)
    assert (code, said) == (2, "")
    assert errors.startswith("chatspace: --set changes a run spec, and none is named: ")


def test_file_that_is_the_value_of_a_flag_is_no_spec(embed_dataset: Command) -> None:
    code, _, errors = embed_dataset("--path", "data.yaml", "--source", "parquet")
    assert code == 2
    assert "model.name" in errors


def test_dry_run_that_may_ask_sends_one_request(embed_dataset: Command, server: FakeOpenAI) -> None:
    server.headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-limit-tokens": "9000"}
    code, said, _ = embed_dataset("s.yaml", "--ask-endpoint")
    assert code == 0
    assert server.n_requests == 1
    assert "the endpoint's own count of 32 inputs" in said
    assert "at 60 requests and 9,000 tokens a minute" in said
    n_tokens = sum(len(text.split()) for text in server.requests[0])
    assert f"{n_tokens} tokens" in said
    assert "one request was sent" in said


def test_dry_run_that_may_ask_gives_up_soon_where_nobody_answers(embed_dataset: Command) -> None:
    began_s = time.monotonic()
    dead = ["--set", "model.base_url=http://127.0.0.1:9/v1"]
    code, said, errors = embed_dataset("s.yaml", "--ask-endpoint", *dead)
    assert (code, said) == (4, "")
    assert re.fullmatch(
        r"chatspace: No answer: tiny; 2 attempts .* failed: .* Look at .*\n", errors
    )
    assert time.monotonic() - began_s < 15


@pytest.mark.parametrize("command", ["embed-dataset", "run"])
def test_missing_key_is_one_line_before_anything_is_written(
    embed_dataset: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    url = ["--set", "model.base_url=https://api.openai.com/v1"]
    allowed = {"embed-dataset": ["--execute"], "run": ["--set", "spending.execute=true"]}
    code, said, errors = embed_dataset("s.yaml", *url, *allowed[command], command=command)
    assert (code, said) == (4, "")
    assert re.fullmatch(r"chatspace: No key: OPENAI_API_KEY is not set, .*\n", errors)
    assert not (tmp_path / "ws").exists()
    code, said, _ = embed_dataset("s.yaml", *url, *allowed["run"], command="setup")
    assert code == 0
    assert "note     a task that is submitted from here would fail. No key: OPENAI_API_KEY" in said


def test_failure_of_a_task_is_told_once(
    embed_dataset: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-another-0123456789abcdef")
    code, said, errors = embed_dataset("s.yaml", "--execute", "--set", "slices.count=2")
    assert code == 4
    assert (said + errors).count("Key refused") == 1
    # How far the other slice is may be told in between.
    failed = re.findall(r"^slice train (\d+) failed$", said, re.MULTILINE)
    assert sorted(failed) == ["0", "1"]
    assert errors.startswith("chatspace: Slice failed: train 0 exit code 4: Key refused: ")
    assert errors.endswith(" (1 more slice failed)\n")
    assert "UnfitEnvironmentError" not in said + errors


def test_execute_runs_gathers_and_then_has_nothing_left(
    embed_dataset: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    code, said, errors = embed_dataset("s.yaml", "--execute")
    assert code == 0, errors
    assert "60 rows, every one accounted for" in said
    assert "padding" not in said  # what an endpoint pads is its own affair
    stages = [line.split()[0] for line in said.splitlines() if " s busy, " in line]
    assert stages == ["loader", "requests", "writer"]
    assert server.n_requests == N_ROWS // 5
    code, said, _ = embed_dataset("s.yaml", "--ask-endpoint")
    assert "0 of 60, the others are done" in said
    assert "dry run: nothing was sent" in said
    code, said, _ = embed_dataset("s.yaml", "--execute")
    assert code == 0
    assert "nothing to embed" in said
    assert server.n_requests == N_ROWS // 5
    (folder,) = (tmp_path / "ws" / "runs").iterdir()
    run = open_run(folder)
    assert run.vectors().shape == (N_ROWS, 16)
    assert run.status().state == "complete"


def test_flags_instead_of_a_file(
    embed_dataset: Command, server: FakeOpenAI, tmp_path: Path
) -> None:
    flags = [
        "--source", "parquet", "--path", "data/docs.parquet", "--workspace", "ws2",
        "--model-name", "tiny", "--base-url", server.url, "--dimensions", "4",
    ]  # fmt: skip
    code, said, _ = embed_dataset(*flags)
    assert code == 0
    assert server.paths == []
    code, said, errors = embed_dataset(*flags, "--execute")
    assert code == 0, errors
    assert "60  4 numbers each" in said


def test_execute_alone_looks_for_the_file_that_counts_tokens(
    embed_dataset: Command, server: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    server.dim = 1536
    code, _, errors = embed_dataset(
        "s.yaml", "--set", "model.name=text-embedding-3-small", "--execute"
    )
    assert code == 0, errors
    assert "tiktoken's file of cl100k_base: " in caplog.text
    assert "Tasks will estimate tokens." in caplog.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Which dataset?"),
        (["gone.yaml"], "gone.yaml"),
        (["s.yaml", "--excute"], "No such option: --excute"),
        (["s.yaml", "--long-text=skip"], "Not beside a file: --long-text; it is a key of the spec"),
        (["s.yaml", "--no-document-vector"], "Give it as --set model.document_vector=VALUE"),
        (["s.yaml", "more.yaml"], "more.yaml"),
        (["s.yaml", "--set", "model.nam=x"], "Did you mean model.name?"),
        (["s.yaml", "--set", "model.name="], "model.name"),
        (["s.yaml", "--set", "model.base_url=host:80"], "Not an address: model.base_url"),
        (["s.yaml", "--set", "kind=embed"], "model.base_url"),
        (["s.yaml", "--set", "model.chunk_tokens=9"], "only where rows are cut into chunks"),
        (
            ["--source", "csv", "--path", "x", "--long-text", "chunk", "--chunk-tokens", "0"],
            "model.chunk_tokens",
        ),
        (["s.yaml", "--set", "model.long_text=cut"], "expected one of truncate, error, skip"),
        (["s.yaml", "--set", "requests.concurrency=1000"], "concurrency=1000 is above 256"),
        (["s.yaml", "--set", "dataset.text_field=body"], "body"),
        (["s.yaml", "--set", "dataset.path=nowhere/*.parquet"], "nowhere"),
        (["--source", "parquet"], "path is required"),
        (["s.yaml", "--execute", "--set", "output.truncate_dim=99"], "output.truncate_dim=99"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    embed_dataset: Command, words: list[str], said: str
) -> None:
    code, out, errors = embed_dataset(*words)
    assert (code, out if "--execute" not in words else "") == (2, "")
    *_, last = errors.splitlines()
    assert last.startswith("chatspace: ")
    assert said in last
    assert "Traceback" not in errors


def test_run_without_leave_to_spend_is_refused(embed_dataset: Command, server: FakeOpenAI) -> None:
    code, _, errors = embed_dataset("s.yaml", command="run")
    assert code == 2
    assert "spending.execute=false" in errors
    code, _, _ = embed_dataset("s.yaml", "--set", "spending.execute=true", command="run")
    assert code == 0
    assert server.n_requests == N_ROWS // 5


def test_probe_is_refused_before_it_pays(embed_dataset: Command, server: FakeOpenAI) -> None:
    code, _, errors = embed_dataset(
        "s.yaml", "--minutes", "0.02", "--set", "spending.execute=true", command="probe"
    )
    assert code == 2
    assert "a probe would pay for rows that it drops" in errors
    assert server.paths == []


def test_examples_of_the_docs_work(
    embed_dataset: Command, server: FakeOpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("CHATSPACE_WORKSPACE", str(tmp_path / "docs-ws"))
    server.dim = 1536
    text = (Path(__file__).parents[1] / "docs" / "openai.md").read_text(encoding="utf-8")
    (spec,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "wiki.yaml").write_text(spec)
    blocks = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    ours = [words[2:] for words in commands if words[:2] == ["chatspace", "embed-dataset"]]
    assert len(ours) == 6
    for words in ours:
        here = [server.url if word == "http://localhost:8000/v1" else word for word in words]
        code, said, errors = embed_dataset(*here)
        assert code == 0, (words, errors)
        assert ("dry run" in said) == ("--execute" not in words)
