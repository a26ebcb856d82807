import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatspace.errors import SpecError
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.spec.document import parse_scalar, read_document
from chatspace.spec.loading import load_spec, spec_from_mapping
from chatspace.spec.schema import json_schema

HEAD = "kind: embed\nname: demo\ndataset: {source: parquet, path: data.parquet}\n"


def write(tmp_path: Path, text: str, head: str = HEAD) -> Path:
    path = tmp_path / "a.yaml"
    path.write_text(head + text, encoding="utf-8")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_load_spec_minimal_takes_every_default(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, ""))
    assert isinstance(spec, EmbedSpec)
    assert spec.output.rows_per_shard == 8192
    assert spec.dataset.split_names == ("train",)


@pytest.mark.parametrize("time", ["12:00:00", "02:00:00", "1-00:00:00", "90", '"12:00:00"'])
def test_load_spec_walltime_unquoted_stays_as_written(tmp_path: Path, time: str) -> None:
    spec = load_spec(write(tmp_path, f"slurm:\n  time: {time}\n"))
    assert spec.slurm.time == time.strip('"')


def test_load_spec_walltime_number_by_override_is_minutes(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, ""), ["slurm.time=60"]).slurm.time == "60"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1e-3", 1e-3),
        ("02:00:00", "02:00:00"),
        ("12", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("1_000", "1_000"),
        ("~", None),
        ("", None),
        ("true", True),
        ("2024-01-01", "2024-01-01"),
        ("1.5", 1.5),
        ("-.inf", float("-inf")),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_parse_scalar_follows_the_core_schema(text: str, value: object) -> None:
    assert parse_scalar(text) == value
    assert type(parse_scalar(text)) is type(value)


@given(st.text())
def test_parse_scalar_any_text_never_fails(text: str) -> None:
    parse_scalar(text)


def test_load_spec_empty_sections_are_absent(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, "slurm:\ncontainer:\n  env:\noutput:\n  # all defaults\n"))
    assert spec.container.env == {}


def test_load_spec_anchor_and_alias_work(tmp_path: Path) -> None:
    text = "container:\n  binds: &b [/a, /b]\noutput:\n  keep_columns: *b\n"
    assert load_spec(write(tmp_path, text)).output.keep_columns == ("/a", "/b")


def test_load_spec_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_spec(path).name == "demo"


def test_load_spec_unknown_key_names_line_known_keys_and_nearest(tmp_path: Path) -> None:
    path = write(tmp_path, "encode:\n  tokn_per_batch: 5\n")
    assert refused(path) == (
        f"Unknown key: {path}:5 encode.tokn_per_batch; known: batching, tokens_per_batch, "
        "batch_size, bucket_min_tokens, bucket_max_tokens, compile, compile_mode, normalize, "
        "workers, prefetch_shards. Did you mean tokens_per_batch?"
    )


def test_load_spec_key_in_the_wrong_section_is_told_its_section(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "mem_gb: 5\n"))
    assert message.endswith("Did you mean slurm.mem_gb?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slurm: {mem_gb: much}", "slurm.mem_gb='much'; expected an integer greater than 0."),
        ("slurm: {mem_gb: 0}", "slurm.mem_gb=0; expected an integer greater than 0."),
        ("slurm: {grace_s: -1}", "slurm.grace_s=-1; expected an integer of 0 or more."),
        (
            "slurm: {mem_gb: 1e2}",
            "slurm.mem_gb=100.0; expected an integer greater than 0. Write 100.",
        ),
        ("slurm: {mem_gb: '64'}", "greater than 0. Write 64 without quotes."),
        ("slurm: {account: 12}", "slurm.account=12; expected text. Put it in quotes."),
        (
            "slurm: {time: soon}",
            "expected a walltime such as 02:00:00, 1-12:00:00 or 90 (minutes).",
        ),
        (
            "slurm: {extra: {a: 1.5}}",
            "slurm.extra.a=1.5; expected text or an integer or true or false",
        ),
        ("slurm: 5", "slurm=5; expected indented `key: value` lines."),
        (
            "output: {dtype: float23}",
            "expected one of float32, float16, int8, binary. Did you mean float32?",
        ),
        ("output: {keep_text: yes}", "output.keep_text='yes'; expected true or false."),
        ("output: {keep_columns: a}", "expected a list such as [a, b]. Write ['a']."),
        ("output: {keep_columns: [a, 1]}", "output.keep_columns[1]=1; expected text. Put it in"),
        (
            "output: {rows_per_shard: null}",
            "=null; expected an integer greater than 0. Write a value",
        ),
        ("container: {nv: maybe}", "container.nv='maybe'; expected true or false or auto."),
        ("container: {env: {A: 1}}", "container.env.A=1; expected text. Put it in quotes."),
        ("model: {name: ''}", "model.name=''; expected text that is not empty."),
        ("model: {device: gpu}", "model.device='gpu'; expected `auto`, `cpu`, `mps` or `cuda`."),
        ("encode: {batch_size: 1, tokens_per_batch: 1}", "encode; tokens_per_batch and batch_size"),
    ],
)
def test_load_spec_wrong_value_says_what_is_expected(
    tmp_path: Path, text: str, expected: str
) -> None:
    message = refused(write(tmp_path, text + "\n"))
    assert expected in message
    assert "a.yaml:4 " in message


def test_load_spec_missing_key_names_its_section(tmp_path: Path) -> None:
    path = write(tmp_path, "kind: embed\nname: x\ndataset:\n  path: a\n", head="")
    assert refused(path) == (
        f"Missing key: {path}:3 dataset.source; expected one of huggingface, parquet, jsonl, csv, "
        "arrow, text. Add it."
    )


def test_load_spec_several_errors_shows_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "slurm:\n  mem_gb: a\n  tiem: b\nseed: -1\n"))
    assert "a.yaml:5 slurm.mem_gb" in message
    assert message.endswith("(and 2 more)")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "Empty file: "),
        ("# nothing\n", "Empty file: "),
        ("- a\n", "a.yaml:1; expected `key: value` lines"),
        ("a: 1\nb:\n\tc: 1\n", "a.yaml:3; a tab. Indent with spaces."),
        ("a: 1\nb: [1\nc: 2\n", "Invalid YAML: "),
        ("a: b: c\n", "a.yaml:1; mapping values are not allowed here"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3 a; it stands on line 1 already"),
        ("s:\n  a: 1\n  a: 3\n", "a.yaml:3 s.a; it stands on line 2 already"),
        ("a: 1\n---\nb: 2\n", "a.yaml:2; a second document"),
        ("a: &x [*x]\n", "a.yaml:1; an anchor in itself"),
        ("a: !!python/name:os.system x\n", "Unsupported tag: "),
        ("? [a]\n: 1\n", "Invalid key: "),
        ("a: \x01\n", "a.yaml:1; a character that YAML does not allow"),
        ("name: x\n", "Missing key: "),
        ("kind: 5\n", "Unknown kind: "),
        ("a: *nothing\n", "undefined alias"),
        ("[" * 3000, "Invalid YAML: "),
    ],
)
def test_load_spec_bad_yaml_is_one_line_with_its_place(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in refused(write(tmp_path, text, head=""))


def test_load_spec_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "kind: embd\n", head=""))
    assert "a.yaml:1 kind='embd'; known: embed" in message
    assert message.endswith("Did you mean embed?")


def test_load_spec_not_utf8_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"kind: embed\nname: caf\xe9\n")
    assert refused(path) == f"Invalid text: {path}:2; not UTF-8. Save it as UTF-8."


def test_load_spec_missing_file_or_folder_says_so(tmp_path: Path) -> None:
    assert refused(tmp_path / "no.yaml").startswith("No such file: ")
    assert "Is a directory" in refused(tmp_path)
    assert "Invalid file name" in refused(Path("a\0b"))


def test_load_spec_file_name_with_newline_stays_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb.yaml"
    path.write_text("x: 1\n")
    assert "a\\nb.yaml" in refused(path)


def test_load_spec_overrides_replace_and_add_values(tmp_path: Path) -> None:
    spec = load_spec(
        write(tmp_path, "slurm:\n  mem_gb: 5\n"),
        [
            "slurm.mem_gb=64",
            "slurm.account=1234",
            "dataset.splits=[a, b]",
            "dataset.path=data/*.parquet",
            "container.env.A=1=2",
            "slurm.extra.exclusive=true",
            "model.prompt=Query: what",
            "model.model_kwargs={a: {b: 1}}",
            "output.keep_text=false",
            "encode.tokens_per_batch=",
            "name=second",
            "name=third",
        ],
    )
    assert isinstance(spec, EmbedSpec)
    assert (spec.slurm.mem_gb, spec.slurm.account) == (64, "1234")
    assert spec.dataset.splits == ("a", "b")
    assert spec.dataset.path == "data/*.parquet"
    assert spec.container.env == {"A": "1=2"}
    assert spec.slurm.extra == {"exclusive": True}
    assert spec.model.prompt == "Query: what"
    assert spec.model.model_kwargs == {"a": {"b": 1}}
    assert spec.output.keep_text is False
    assert spec.encode.tokens_per_batch is None
    assert spec.name == "third"


@pytest.mark.parametrize("path", ["[ab]*.parquet", "{split}/x.parquet", "'it''s'", '"a'])
def test_load_spec_override_text_that_looks_like_yaml_stays_text(tmp_path: Path, path: str) -> None:
    value = load_spec(write(tmp_path, ""), [f"dataset.path={path}"]).dataset.path
    assert value == ("it's" if path == "'it''s'" else path)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("slurm.tiem=02:00:00", "Unknown key: --set slurm.tiem=02:00:00; known: profile, "),
        ("slurm.tiem=02:00:00", "Did you mean slurm.time?"),
        ("slrm.time=1", "Unknown key: --set slrm.time=1; known: kind, name"),
        ("name.x=1", "Unknown key: --set name.x=1; known: none"),
        ("slurm.mem_gb=much", "Invalid value: --set slurm.mem_gb='much'; expected an integer"),
        ("slurm", "Invalid override: --set 'slurm'; expected key=value."),
        ("=1", "Invalid override: "),
        ("kind=emb", "Unknown kind: --set kind='emb'"),
    ],
)
def test_load_spec_bad_override_names_the_override(
    tmp_path: Path, override: str, expected: str
) -> None:
    assert expected in refused(write(tmp_path, ""), override)


def test_load_spec_override_below_a_value_is_refused(tmp_path: Path) -> None:
    message = refused(write(tmp_path, "container: {env: [a]}\n"), "container.env.A=1")
    assert "container.env is ['a'], which has no keys" in message


def test_load_spec_override_leaves_the_document_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "slurm: {mem_gb: 5}\n")
    load_spec(path, ["slurm.mem_gb=64"])
    assert read_document(path).values["slurm"] == {"mem_gb": 5}


def test_spec_from_mapping_takes_paths_and_tuples() -> None:
    values = {
        "kind": "embed",
        "name": "x",
        "dataset": {"source": "parquet", "path": Path("a"), "splits": ("a", "b")},
    }
    spec = spec_from_mapping(values, "submit()")
    assert (spec.dataset.path, spec.dataset.splits) == ("a", ("a", "b"))


def test_spec_from_mapping_error_names_the_caller() -> None:
    with pytest.raises(SpecError, match=r"Unknown key: submit\(\) nme; known: kind, name"):
        spec_from_mapping({"kind": "embed", "name": "x", "dataset": {}, "nme": 1}, "submit()")


def test_json_schema_describes_every_key() -> None:
    schema = json_schema("embed")
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert schema["title"] == "chatspace run spec, kind embed"
    output = schema["$defs"]["OutputSection"]["properties"]
    assert all("description" in value for value in output.values())
    with pytest.raises(SpecError, match="Did you mean embed"):
        json_schema("embd")


def test_loading_imports_no_heavy_library() -> None:
    code = (
        "import sys, chatspace.spec.loading, chatspace.spec.cluster, chatspace.spec.flags\n"
        "chatspace.spec.loading.KINDS['embed'].spec_model()\n"
        "print({'torch', 'pyarrow', 'numpy', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_load_spec_name_with_a_space_reads_as_a_sentence(tmp_path: Path) -> None:
    assert refused(write(tmp_path, ""), "name=my run").startswith(
        "Invalid value: --set name='my run'; expected letters, digits, `.`, `_` and `-`, "
    )


@pytest.mark.parametrize("value", ["{", "[1, 2", '"a', "{a: 1} b", "{a: 1, a: 2}", "[" * 5000])
def test_load_spec_override_of_broken_flow_yaml_is_refused(tmp_path: Path, value: str) -> None:
    error = refused(write(tmp_path, ""), f"model.model_kwargs.x={value}")
    assert "--set " in error
    assert "model.model_kwargs.x=" in error


def test_load_spec_number_between_two_limits_names_both(tmp_path: Path) -> None:
    text = "kind: embed\nname: x\ndataset: {source: csv, path: a, sample: {fraction: 1.5}}\n"
    assert "expected a number greater than 0 and up to 1" in refused(write(tmp_path, text, head=""))
