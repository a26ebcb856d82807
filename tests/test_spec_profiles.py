from pathlib import Path
from typing import Any

import pytest

from chatspace.errors import SpecError
from chatspace.resources import resource_dir
from chatspace.spec.base import RunSpec
from chatspace.spec.cluster import resolve_cluster
from chatspace.spec.loading import spec_from_mapping
from chatspace.spec.profiles import known_profiles, load_profile
from chatspace.spec.slurm import walltime_min, walltime_s

PACKAGED = ("generic", "local", "nyu_torch", "princeton")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "ada")
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("CHATSPACE_PROFILES", raising=False)
    return tmp_path


def make_spec(**sections: Any) -> RunSpec:
    values = {"kind": "embed", "name": "x", "dataset": {"source": "parquet", "path": "a"}}
    return spec_from_mapping({**values, **sections}, "test")


def make_profile(folder: Path, text: str, name: str = "mine") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(f"name: {name}\n{text}")
    return str(path)


def refused(spec: RunSpec) -> str:
    with pytest.raises(SpecError) as caught:
        resolve_cluster(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PACKAGED)
def test_load_profile_packaged_resolves(name: str) -> None:
    profile = load_profile(name)
    assert profile.name == name
    assert profile.description
    assert resolve_cluster(make_spec(slurm={"profile": name})).profile == name


def test_resource_dir_finds_both_folders() -> None:
    assert (resource_dir("profiles") / "generic.yaml").is_file()
    assert resource_dir("templates").is_dir()


def test_known_profiles_lists_all_places_nearest_first(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_profile(home / ".config" / "chatspace" / "profiles", "mem_gb: 1\n", "generic")
    make_profile(home / "one", "mem_gb: 2\n", "generic")
    make_profile(home / "two", "mem_gb: 3\n", "other")
    assert load_profile("generic").mem_gb == 1
    monkeypatch.setenv("CHATSPACE_PROFILES", f"{home}/one:{home}/two")
    assert load_profile("generic").mem_gb == 2
    assert set(known_profiles()) == {*PACKAGED, "other"}


def test_load_profile_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        load_profile("princton")
    assert "known: generic, local, nyu_torch, princeton. Did you mean princeton?" in str(
        caught.value
    )
    for part in ("nyu", "NYU", "torch"):
        with pytest.raises(SpecError, match=r"Did you mean nyu_torch\?"):
            load_profile(part)
    with pytest.raises(SpecError, match=r"Choose one, or put x\.yaml into"):
        load_profile("x")


def test_load_profile_wrong_key_names_the_line(home: Path) -> None:
    path = make_profile(home, "gpu_directiv: gres\n")
    with pytest.raises(
        SpecError, match=r"mine.yaml:2 gpu_directiv; .*Did you mean gpu_directive\?"
    ):
        load_profile(path)


def test_load_profile_wrong_value_names_the_choices(home: Path) -> None:
    path = make_profile(home, "gpu_directive: gpus\n")
    with pytest.raises(SpecError, match="expected one of gres, gpus-per-task, none"):
        load_profile(path)


def test_load_profile_missing_file_says_so() -> None:
    with pytest.raises(SpecError, match="No such file"):
        load_profile("./nowhere.yaml")


def test_resolve_cluster_nothing_said_gives_the_documented_defaults() -> None:
    cluster = resolve_cluster(make_spec())
    assert cluster.profile == "generic"
    assert (cluster.time, cluster.mem_gb) == ("02:00:00", 32)
    assert (cluster.cpus_per_task, cluster.gpus_per_task) == (8, 1)
    assert (cluster.gpu_directive, cluster.runtime, cluster.nv) == ("gres", "auto", True)
    assert cluster.max_array_size is None


def test_resolve_cluster_spec_goes_before_profile(home: Path) -> None:
    profile = make_profile(
        home,
        "mem_gb: 5\ntime: 30\npartition: slow\nextra: {nice: 1, exclusive: true}\n"
        "container:\n  binds: [/a, /b]\n  env: {A: p, B: p}\n  nv: true\n",
    )
    cluster = resolve_cluster(
        make_spec(
            slurm={"profile": profile, "mem_gb": 6, "gpus_per_task": 0, "extra": {"nice": 2}},
            container={"binds": ["/b", "/c:/d:ro"], "env": {"B": "s"}, "nv": False},
        )
    )
    assert (cluster.mem_gb, cluster.time, cluster.partition) == (6, "30", "slow")
    assert cluster.extra == {"nice": 2, "exclusive": True}
    assert cluster.binds == ("/a", "/b", "/c:/d:ro")
    assert cluster.env == {"A": "p", "B": "s"}
    assert (cluster.gpus_per_task, cluster.nv) == (0, False)


@pytest.mark.parametrize(("gpus", "nv"), [(0, False), (2, True)])
def test_resolve_cluster_nv_auto_follows_the_gpus(gpus: int, nv: bool) -> None:
    assert resolve_cluster(make_spec(slurm={"gpus_per_task": gpus})).nv is nv


def test_resolve_cluster_paths_are_expanded(home: Path) -> None:
    profile = make_profile(home, "scratch: /scratch/$USER\nworkspace: ${USER}/w\nhf_home: ~/hf\n")
    cluster = resolve_cluster(
        make_spec(
            slurm={"profile": profile, "log_dir": "~/logs"},
            container={"image": "/i/$USER.sif", "venv": "~/venv", "binds": ["/x/$USER:/y"]},
        )
    )
    assert (cluster.scratch, cluster.workspace) == ("/scratch/ada", "ada/w")
    assert cluster.hf_home == f"{home}/hf"
    assert (cluster.image, cluster.venv) == ("/i/ada.sif", f"{home}/venv")
    assert (cluster.binds, cluster.log_dir) == (("/x/ada:/y",), f"{home}/logs")


def test_resolve_cluster_undefined_variable_names_key_and_variable(home: Path) -> None:
    message = refused(make_spec(container={"image": "$NOT_SET_X/a.sif"}))
    assert message.startswith("Undefined variable: container.image='$NOT_SET_X/a.sif'; NOT_SET_X")
    profile = make_profile(home, "scratch: $NOT_SET_X\n")
    assert "profile mine: scratch=" in refused(make_spec(slurm={"profile": profile}))


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "OPENAI_API_KEY", "MY_SECRET", "db_password", "AWS_SECRET_ACCESS_KEY"]
)
def test_resolve_cluster_secret_variable_is_refused(home: Path, name: str) -> None:
    message = refused(make_spec(container={"env": {name: "hf_abc"}}))
    assert f"Secret in a file: container.env.{name}; " in message
    assert "hf_abc" not in message
    profile = make_profile(home, f"container: {{env: {{{name}: hf_abc}}}}\n")
    assert "profile mine: container.env" in refused(make_spec(slurm={"profile": profile}))


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "OMP_NUM_THREADS"])
def test_resolve_cluster_harmless_variable_is_kept(name: str) -> None:
    env = {name: "a b'\n$c"}
    assert resolve_cluster(make_spec(container={"env": env})).env == env


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"slurm": {"partition": "a\nb"}}, "slurm.partition='a\\nb'"),
        ({"slurm": {"extra": {"comment": "a\nb"}}}, "slurm.extra.comment"),
        ({"slurm": {"extra": {"a b": 1}}}, "slurm.extra 'a b'"),
        ({"slurm": {"extra": {"--nice": 1}}}, "slurm.extra '--nice'"),
        ({"slurm": {"mail": "a@b\r"}}, "slurm.mail"),
        ({"slurm": {"log_dir": "a\nb"}}, "slurm.log_dir"),
        ({"container": {"image": "a\nb"}}, "container.image"),
        ({"container": {"env": {"A;rm": "x"}}}, "container.env 'A;rm'"),
        ({"container": {"env": {"A": "x\0"}}}, "container.env.A"),
    ],
)
def test_resolve_cluster_value_that_would_break_the_script_is_refused(
    sections: dict[str, Any], place: str
) -> None:
    assert place in refused(make_spec(**sections))


@pytest.mark.parametrize(
    ("time", "seconds", "minutes"),
    [
        ("0", 0, 0),
        ("90", 5400, 90),
        ("1:30", 90, 2),
        ("30:00", 1800, 30),
        ("1:30:00", 5400, 90),
        ("1:30:01", 5401, 91),
        ("2-12", 216_000, 3600),
        ("1-00:30", 88_200, 1470),
        ("1-00:00:30", 86_430, 1441),
    ],
)
def test_walltime_all_forms_of_sbatch(time: str, seconds: int, minutes: int) -> None:
    assert (walltime_s(time), walltime_min(time)) == (seconds, minutes)


@pytest.mark.parametrize(
    ("grace_s", "time"), [(3600, "1"), (60, "1"), (120, "2:00"), (3600, "1:00:00")]
)
def test_resolve_cluster_grace_as_long_as_the_walltime_is_refused(grace_s: int, time: str) -> None:
    error = refused(make_spec(slurm={"grace_s": grace_s, "time": time}))
    assert error.startswith(f"Grace too long: slurm.grace_s={grace_s}; the walltime {time} is ")


def test_resolve_cluster_grace_longer_than_the_walltime_of_the_profile_is_refused(
    home: Path,
) -> None:
    profile = make_profile(home, "time: 5\n")
    assert "the walltime 5 is 300 s" in refused(
        make_spec(slurm={"profile": profile, "grace_s": 300})
    )


@pytest.mark.parametrize(("grace_s", "time"), [(59, "1"), (0, "1"), (3600, "0")])
def test_resolve_cluster_grace_shorter_or_no_limit_is_taken(grace_s: int, time: str) -> None:
    spec = make_spec(slurm={"grace_s": grace_s, "time": time})
    assert resolve_cluster(spec).grace_s == grace_s


@pytest.mark.parametrize(("time", "grace_s"), [("1", 15), ("4", 60), ("08:00", 120), ("0", 120)])
def test_resolve_cluster_grace_not_given_fits_the_walltime(time: str, grace_s: int) -> None:
    assert resolve_cluster(make_spec(slurm={"time": time})).grace_s == grace_s
