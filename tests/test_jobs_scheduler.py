import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from chatspace.errors import ExitCode, UnfitEnvironmentError
from chatspace.jobs import scheduler as module
from chatspace.jobs.scheduler import ACTIVE_STATES, SlurmScheduler, Snapshot, look
from tests.runs import FakeScheduler

Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Returns a maker of commands on an else empty PATH; each logs its arguments and folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def make(name: str, *, out: str = "", err: str = "", code: int = 0) -> Path:
        log = tmp_path / f"{name}.log"
        (folder / name).write_text(
            "#!/bin/bash\n"
            f'printf \'%s\\n\' "$PWD" "$SLURM_BITSTR_LEN" "$@" >>{shlex.quote(str(log))}\n'
            f"printf %s {shlex.quote(out)}\nprintf %s {shlex.quote(err)} >&2\nexit {code}\n"
        )
        (folder / name).chmod(0o755)
        return log

    return make


@pytest.mark.parametrize(
    ("text", "states"),
    [
        ("", {}),
        ("\n\n", {}),
        ("12|COMPLETED\n", {"12": "COMPLETED"}),
        ("12_3|RUNNING", {"12_3": "RUNNING"}),
        ("12_[4-7%2]|PENDING", {f"12_{i}": "PENDING" for i in (4, 5, 6, 7)}),
        ("12_[1,3-4,9]|PENDING", {f"12_{i}": "PENDING" for i in (1, 3, 4, 9)}),
        ("12_[0-6:3%4]|PENDING", {f"12_{i}": "PENDING" for i in (0, 3, 6)}),
        ("12_[5]|PENDING", {"12_5": "PENDING"}),
        ("12_[1,3,...]|PENDING", {f"12_{i}": "PENDING" for i in (1, 3)}),
        ("12_1|CANCELLED by 1000", {"12_1": "CANCELLED"}),
        ("12_1|CANCELLED+", {"12_1": "CANCELLED"}),
        ("12_1|", {"12_1": "UNKNOWN"}),
        ("slurm_load_jobs error: Unexpected message", {}),
        ("12_1|FAILED\n12_1|RUNNING", {"12_1": "RUNNING"}),
    ],
)
def test_states_any_form_of_an_answer_is_understood(
    fake: Fake, text: str, states: dict[str, str]
) -> None:
    fake("sacct", out=text)
    fake("squeue", out=text)
    assert SlurmScheduler().states(["12"]) == states


def test_submit_calls_sbatch_in_the_script_s_folder(fake: Fake, tmp_path: Path) -> None:
    log = fake("sbatch", out="4711\n")
    script = tmp_path / "a folder" / "embed.slurm"
    script.parent.mkdir()
    assert SlurmScheduler().submit(script) == "4711"
    assert log.read_text().splitlines() == [str(script.parent), "", "--parsable", "embed.slurm"]


def test_submit_after_other_jobs_waits_for_their_end_whatever_it_is(
    fake: Fake, tmp_path: Path
) -> None:
    log = fake("sbatch", out="4713;cluster\n")
    assert SlurmScheduler().submit(tmp_path / "gather.slurm", after=["4711", "4712"]) == "4713"
    words = log.read_text().splitlines()
    assert "--dependency=afterany:4711:4712" in words
    assert "--kill-on-invalid-dep=yes" in words


def test_submit_site_wrapper_that_talks_first_is_understood(fake: Fake, tmp_path: Path) -> None:
    fake("sbatch", out="Welcome to the cluster!\nYour balance: 12 hours\n\n4711\n")
    assert SlurmScheduler().submit(tmp_path / "x") == "4711"


@pytest.mark.parametrize("out", ["", "\n", "Submitted.\n"])
def test_submit_answer_without_a_job_id_is_an_error(fake: Fake, tmp_path: Path, out: str) -> None:
    fake("sbatch", out=out)
    with pytest.raises(UnfitEnvironmentError, match="sbatch gave no job id"):
        SlurmScheduler().submit(tmp_path / "embed.slurm")


def test_submit_refusal_is_in_sbatch_s_own_words(fake: Fake, tmp_path: Path) -> None:
    message = "sbatch: error: invalid partition specified: gpuu\nsbatch: error: Batch job failed\n"
    fake("sbatch", err=message, code=1)
    with pytest.raises(UnfitEnvironmentError) as caught:
        SlurmScheduler().submit(tmp_path / "embed.slurm")
    assert str(caught.value).startswith(
        "sbatch refused: invalid partition specified: gpuu Batch job failed. Correct the slurm"
    )
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


@pytest.mark.parametrize(
    "said",
    [
        "sbatch: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host\n"
        "sbatch: error: fetch_config: DNS SRV lookup failed\n"
        "sbatch: error: _establish_config_source: failed to fetch config\n"
        "sbatch: fatal: Could not establish a configuration source\n",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller "
        "(connect failure)\n",
    ],
)
def test_submit_slurm_out_of_reach_says_where_to_run_it(
    fake: Fake, tmp_path: Path, said: str
) -> None:
    fake("sbatch", err=said, code=1)
    with pytest.raises(UnfitEnvironmentError) as caught:
        SlurmScheduler().submit(tmp_path / "embed.slurm")
    message = str(caught.value)
    assert message.startswith("SLURM cannot be reached from this machine: sbatch says ")
    assert "Run it on a login node" in message
    assert "slurm section" not in message
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_submit_without_slurm_says_what_else_works(fake: Fake, tmp_path: Path) -> None:
    with pytest.raises(UnfitEnvironmentError, match=r"sbatch is not on the PATH.*chatspace run"):
        SlurmScheduler().submit(tmp_path / "embed.slurm")


def test_submit_slurm_that_does_not_answer_is_an_error(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake("sbatch")
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/bash\nexec /bin/sleep 30\n")
    monkeypatch.setattr(module, "COMMAND_TIMEOUT_S", 0.2)
    with pytest.raises(UnfitEnvironmentError, match="sbatch took more than"):
        SlurmScheduler().submit(tmp_path / "embed.slurm")


def test_states_squeue_goes_before_accounting_which_lags(fake: Fake) -> None:
    sacct = fake(
        "sacct", out="12_0|RUNNING|0:0\n12_1|COMPLETED|0:0\n12_[2-3]|PENDING|0:0\n13|PENDING|\n"
    )
    squeue = fake("squeue", out="12_0|COMPLETING|x\n12_2|RUNNING|x\n99_0|RUNNING|x\n")
    assert SlurmScheduler().states(["12", "13"]) == {
        "12_0": "COMPLETING",
        "12_1": "COMPLETED",
        "12_2": "RUNNING",  # and 12_3, which is not in the queue, was cancelled
        "13": "PENDING",
    }
    assert sacct.read_text().splitlines()[1:] == [
        "0", "-nPX", "-o", "JobID,State,ExitCode", "-j", "12,13",
    ]  # fmt: skip
    assert squeue.read_text().splitlines()[1:] == [
        "0", "--me", "-h", "-t", "all", "-o", "%i|%T|%j",
    ]  # fmt: skip


def test_states_without_accounting_squeue_is_enough(fake: Fake) -> None:
    fake("sacct", err="Slurm accounting storage is disabled\n", code=1)
    fake("squeue", out="12_0|RUNNING|x\n12_[4-5%2]|PENDING|x\n12_1|FAILED|x\n")
    assert SlurmScheduler().states(["12"]) == {
        "12_0": "RUNNING",
        "12_1": "FAILED",
        "12_4": "PENDING",
        "12_5": "PENDING",
    }


def test_look_tells_exit_codes_and_jobs_that_go_by_a_name(fake: Fake) -> None:
    fake("sacct", out="12_0|FAILED|0:9\n12_1|COMPLETED|0:0\n")
    fake("squeue", out="31_[0-1]|PENDING|mine|odd\n32_0|RUNNING|other\n33|PENDING|mine\n")
    assert SlurmScheduler().look(["12"], ["mine|odd"]) == Snapshot(
        states={"12_0": "FAILED", "12_1": "COMPLETED", "31_0": "PENDING", "31_1": "PENDING"},
        exit_codes={"12_0": "0:9"},
        names={"31": "mine|odd"},
    )


def test_look_without_ids_asks_the_queue_alone(fake: Fake) -> None:
    sacct = fake("sacct")
    fake("squeue")
    assert SlurmScheduler().look([], ["mine"]) == Snapshot()
    assert not sacct.exists()


def test_look_queue_that_does_not_answer_is_told_apart_from_an_empty_one(fake: Fake) -> None:
    fake("squeue", err="Unable to contact slurm controller\n", code=1)
    fake("sacct", out="12_0|RUNNING|0:0\n")
    assert SlurmScheduler().look(["12"]) == Snapshot(states={"12_0": "RUNNING"}, answered=False)


def test_look_another_batch_system_is_asked_for_states_alone() -> None:
    scheduler = FakeScheduler({"12_0": "RUNNING"})
    assert look(scheduler, ["12"], ["mine"]) == Snapshot(states={"12_0": "RUNNING"})
    assert look(scheduler, [], ["mine"]) == Snapshot()
    assert scheduler.asked == [["12"]]


def test_states_without_slurm_nothing_is_known(fake: Fake) -> None:
    assert SlurmScheduler().states(["12"]) == {}


def test_states_of_no_jobs_asks_nobody(fake: Fake) -> None:
    log = fake("squeue")
    assert SlurmScheduler().states([]) == {}
    assert not log.exists()


def test_states_output_that_is_not_text_is_read_all_the_same(fake: Fake, tmp_path: Path) -> None:
    fake("squeue")
    (tmp_path / "bin" / "squeue").write_text("#!/bin/bash\nprintf '12_0|RUNNING\\n\\xff\\xfe\\n'\n")
    assert SlurmScheduler().states(["12"]) == {"12_0": "RUNNING"}


def test_active_states_are_those_in_which_a_task_may_still_write() -> None:
    assert {"PENDING", "RUNNING", "REQUEUED", "COMPLETING"} <= ACTIVE_STATES
    assert not {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"} & ACTIVE_STATES
    assert os.environ.get("SLURM_BITSTR_LEN") is None
