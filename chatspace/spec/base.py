"""Sections that every kind of run spec has: the slices and the run itself."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from chatspace.spec.dataset import DatasetSection
from chatspace.spec.output import OutputSection
from chatspace.spec.section import NAME_PATTERN, Section
from chatspace.spec.slurm import ContainerSection, SlurmSection

# Sections that say where and how a run is executed. They are left out of the plan's hash: a longer
# walltime or another number of tasks resumes the same run.
EXECUTION_KEYS = frozenset({"workspace", "slices", "slurm", "container"})


class SlicesSection(Section):
    """How shards are grouped into array tasks; at most one of the three counts."""

    count: int | None = Field(None, gt=0)
    """Number of array tasks of each split."""
    rows_per_slice: int | None = Field(None, gt=0)
    """About this many rows for each array task."""
    max_tasks: int | None = Field(None, gt=0)
    """At most this many array tasks of each split, one shard or more for each."""
    balance: Literal["bytes", "rows"] = "bytes"
    """What is made equal between tasks: bytes of text, or rows."""

    @model_validator(mode="after")
    def _check(self) -> SlicesSection:
        given = [
            k for k in ("count", "rows_per_slice", "max_tasks") if getattr(self, k) is not None
        ]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other; keep one")
        return self


class RunSpec(Section):
    """What a person wrote: the part that all kinds share.

    Attributes:
        UNHASHED: keys of a section that a task needs, but that change no byte of a shard.
    """

    UNHASHED: ClassVar[frozenset[tuple[str, str]]] = frozenset()

    kind: str
    """The sort of run."""
    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run: letters, digits, `.`, `_` and `-`; begins the run id."""
    workspace: str | None = None
    """Root of everything that is written [$CHATSPACE_WORKSPACE, else /workspace]."""
    seed: int = Field(0, ge=0)
    """Seed of everything that draws at random."""
    dataset: DatasetSection
    output: OutputSection = OutputSection()
    slices: SlicesSection = SlicesSection()
    slurm: SlurmSection = SlurmSection()
    container: ContainerSection = ContainerSection()

    def science(self) -> dict[str, Any]:
        """The part that a task needs to make the shards, as plain JSON; it stands in the plan."""
        return self.model_dump(mode="json", exclude=set(EXECUTION_KEYS))

    def hashed(self) -> dict[str, Any]:
        """The part that decides what the shards hold, as plain JSON; it is hashed into the plan.

        A key that is null asks for nothing and is left out: a key that is added later, null where
        nobody writes it, leaves the runs of earlier specs what they are.
        """
        science = self.model_dump(mode="json", exclude=set(EXECUTION_KEYS), exclude_none=True)
        for section, key in self.UNHASHED:
            science[section].pop(key, None)
        return science
