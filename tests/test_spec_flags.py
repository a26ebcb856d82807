import pytest

from chatspace.errors import SpecError
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.spec.fields import leaves
from chatspace.spec.flags import Flag, iter_flags, values_from_flags
from chatspace.spec.loading import spec_from_mapping

FLAGS = {flag.key: flag for flag in iter_flags(EmbedSpec)}


def test_iter_flags_every_key_but_kind_has_a_flag() -> None:
    assert set(FLAGS) == {".".join(key) for key, _ in leaves(EmbedSpec)} - {"kind"}


def test_iter_flags_names_are_unique_and_parameters_identifiers() -> None:
    names = [name for flag in FLAGS.values() for name in (*flag.names, *flag.off_names)]
    assert len(set(names)) == len(names)
    assert all(flag.parameter.isidentifier() for flag in FLAGS.values())
    assert len({flag.parameter for flag in FLAGS.values()}) == len(FLAGS)


def test_iter_flags_every_flag_has_help() -> None:
    assert all(flag.help for flag in FLAGS.values())


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("encode.tokens_per_batch", ("--tokens-per-batch", "--encode-tokens-per-batch")),
        ("model.name", ("--model-name",)),
        ("dataset.name", ("--dataset-name",)),
        ("name", ("--name",)),
        ("output.dtype", ("--output-dtype",)),
        ("slurm.time", ("--time", "--slurm-time")),
    ],
)
def test_iter_flags_short_name_only_where_it_is_unambiguous(
    key: str, names: tuple[str, ...]
) -> None:
    assert FLAGS[key].names == names


def test_iter_flags_taken_name_is_left_to_the_command() -> None:
    flags = {flag.key: flag for flag in iter_flags(EmbedSpec, taken=["--workers"])}
    assert flags["encode.workers"].names == ("--encode-workers",)
    assert FLAGS["encode.workers"].names == ("--workers", "--encode-workers")
    assert all(flag == FLAGS[key] for key, flag in flags.items() if key != "encode.workers")


@pytest.mark.parametrize(
    ("key", "type_", "is_list", "choices"),
    [
        ("seed", "integer", False, ()),
        ("dataset.splits", "text", True, ()),
        ("output.dtype", "choice", False, ("float32", "float16", "int8", "binary")),
        ("container.nv", "choice", False, ("auto", "true", "false")),
        ("container.env", "mapping", True, ()),
        ("encode.normalize", "boolean", False, ()),
        ("model.device", "text", False, ()),
    ],
)
def test_iter_flags_types_follow_the_model(
    key: str, type_: str, is_list: bool, choices: tuple[str, ...]
) -> None:
    flag = FLAGS[key]
    assert (flag.type, flag.is_list, flag.choices) == (type_, is_list, choices)


def test_iter_flags_boolean_has_an_off_name() -> None:
    assert FLAGS["encode.normalize"].off_names == ("--no-normalize", "--no-encode-normalize")


def test_values_from_flags_round_trip_to_a_spec() -> None:
    given: dict[Flag, object] = dict.fromkeys(FLAGS.values())
    given |= {
        FLAGS["name"]: "x",
        FLAGS["dataset.source"]: "parquet",
        FLAGS["dataset.path"]: "a",
        FLAGS["dataset.splits"]: ("a", "b"),
        FLAGS["output.keep_columns"]: (),
        FLAGS["container.nv"]: "true",
        FLAGS["container.env"]: ("A=1", "B=x=y"),
        FLAGS["slurm.extra"]: ("exclusive=true", "nice=5"),
        FLAGS["model.model_kwargs"]: ("a={b: 1}",),
        FLAGS["encode.normalize"]: False,
        FLAGS["slurm.gpus_per_task"]: 0,
    }
    spec = spec_from_mapping({"kind": "embed", **values_from_flags(given)}, "embed-hf")
    assert isinstance(spec, EmbedSpec)
    assert spec.dataset.splits == ("a", "b")
    assert spec.container.nv is True
    assert spec.container.env == {"A": "1", "B": "x=y"}
    assert spec.slurm.extra == {"exclusive": True, "nice": 5}
    assert spec.model.model_kwargs == {"a": {"b": 1}}
    assert spec.encode.normalize is False
    assert spec.slurm.gpus_per_task == 0


def test_values_from_flags_mapping_without_equals_is_refused() -> None:
    with pytest.raises(SpecError, match="Invalid value: --env 'A'; expected KEY=VALUE"):
        values_from_flags({FLAGS["container.env"]: ("A",)})


def test_values_from_flags_broken_flow_yaml_is_refused() -> None:
    (flag,) = (flag for flag in iter_flags(EmbedSpec) if flag.key == "model.model_kwargs")
    with pytest.raises(SpecError, match=rf"Invalid YAML: {flag.names[0]} 'x=\{{'; "):
        values_from_flags({flag: ["x={"]})
