"""Faults on a real SLURM: rows lost, rows twice, vectors different, seconds lost.

    python benchmarks/faults.py                                   # every fault, 2 rounds each
    python benchmarks/faults.py --only requeue,disk-full --rounds 5 --seed 7
    python benchmarks/faults.py --slurm newer                     # on the SLURM of hpc/newer-slurm

Starts a test cluster of its own and does one run undisturbed. Each round then does the same run
again, is struck at random moments, and is completed as a user would: with `chatspace gather`,
`verify`, `resubmit` and `cancel` alone. What is on disk in the end is compared, row by row and file
by file, with the undisturbed run. A strike counts only if it hit something that lived; a round that
nothing hit is played again, at most twice.

The seed decides when and what is struck, not what the cluster is doing then. Exits with 1 unless
every fault has hit and every row is as it was. Needs root, for daemons and file systems.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from fault_kinds.arena import Arena, ArenaError
from fault_kinds.catalogue import FAULTS
from fault_kinds.outcome import Rows
from fault_kinds.round import Fault, Round, play, undisturbed
from report import hardware, print_table, versions

REPLAYS = 2


@dataclass(slots=True, kw_only=True)
class Total:
    """All rounds of one fault."""

    fault: Fault
    rounds: list[Round] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether the fault has hit and changed nothing."""
        return bool(self.rounds) and self.hits > 0 and all(r.good for r in self.rounds)

    @property
    def hits(self) -> int:
        """How often it hit."""
        return sum(played.hits for played in self.rounds)

    def row(self, usual_s: float) -> list[object]:
        """Returns the cells of the table."""
        found = [played.difference for played in self.rounds if played.difference]
        broken = sum(played.difference is None for played in self.rounds)
        lost_s = [played.elapsed_s - usual_s for played in self.rounds]
        return [
            self.fault.name,
            self.fault.what,
            self.hits,
            f"{broken} runs not completed" if broken else sum(d.lost for d in found),
            sum(d.twice for d in found),
            sum(d.different for d in found),
            sum(d.files for d in found),
            round(sum(played.repairs for played in self.rounds) / max(1, len(self.rounds)), 1),
            round(sum(lost_s) / max(1, len(lost_s))),
        ]


COLUMNS = (
    "fault", "what is done", "times injected", "rows lost", "rows twice", "vectors different",
    "files different", "repairs a run", "seconds lost a run",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    given = _parse(argv)
    if os.geteuid() != 0:
        print("faults: needs root, for daemons and file systems", file=sys.stderr)
        return 4
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # the cluster is taken down all the same
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    arena = None
    good = False
    try:
        arena = Arena.open(given.slurm, given.tasks, given.rows_per_task)
        good = _run(arena, [FAULTS[name] for name in given.only], given.rounds, seed)
    except ArenaError as error:
        print(f"faults: {error}", file=sys.stderr)
        return 4
    finally:
        if arena is not None:
            arena.close(keep=not good)
    return 0 if good else 1


def _run(arena: Arena, faults: Sequence[Fault], rounds: int, seed: int) -> bool:
    slurm = arena.call("sbatch", "--version").stdout.strip()
    print(f"# Faults: {arena.n_tasks} tasks of {arena.rows_per_task} rows, {rounds} rounds each\n")
    print("\n".join([*hardware(), f"- Seed: {seed}", f"- {slurm}, {versions('torch')}"]))
    reference = undisturbed(arena)
    print(f"- Undisturbed: {reference[1]:.0f} s, {reference[0].count.total():,} rows\n", flush=True)
    totals = [_total(arena, fault, rounds, seed, reference) for fault in faults]
    print_table(COLUMNS, [total.row(reference[1]) for total in totals])
    return all(total.good for total in totals)


def _total(
    arena: Arena, fault: Fault, rounds: int, seed: int, reference: tuple[Rows, float]
) -> Total:
    total = Total(fault=fault)
    for number in range(rounds):
        for replay in range(REPLAYS + 1):
            rng = random.Random(f"{seed}/{fault.name}/{number}/{replay}")
            begun = time.monotonic()
            played = play(arena, fault, rng, reference)
            _tell(fault, number, played, time.monotonic() - begun)
            if not played.good:
                kept = arena.keep_failed(f"{fault.name}-{number}-{replay}")
                print(f"  kept in {kept}", file=sys.stderr)
            if played.hits or not played.good:
                total.rounds.append(played)
                break
    return total


def _tell(fault: Fault, number: int, played: Round, seconds: float) -> None:
    words = f"{fault.name} round={number} hits={played.hits} repairs={played.repairs}"
    state = "good" if played.good else f"BAD {played.problem} {played.difference}"
    print(f"{words} {seconds:.0f}s {state}", file=sys.stderr, flush=True)
    for line in played.told:
        print(f"  {line[:300]}", file=sys.stderr, flush=True)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, help="printed; a random one if absent")
    parser.add_argument("--rounds", type=int, default=2, help="runs for each fault [2]")
    parser.add_argument("--only", type=_names, default=list(FAULTS), help=", ".join(FAULTS))
    parser.add_argument("--slurm", choices=("debian", "newer"), default="debian")
    parser.add_argument("--tasks", type=int, default=16, help="array tasks of the run [16]")
    parser.add_argument("--rows-per-task", type=int, default=800)
    return parser.parse_args(argv)


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]}; known: {', '.join(FAULTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
