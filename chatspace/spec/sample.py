"""The part of a dataset section that says how many rows are drawn."""

from __future__ import annotations

from pydantic import Field, model_validator

from chatspace.spec.section import Section


class SampleSection(Section):
    """Rows drawn at random: the same on every machine, whatever the versions of the libraries.

    A row is drawn by its number in the split: the rows with the smallest outputs of the SplitMix64
    generator, seeded with `seed`. A larger `n` with the same seed adds rows and drops none.
    """

    n: int | None = Field(None, gt=0)
    """Exactly so many rows of each split; all of them where there are fewer."""
    fraction: float | None = Field(None, gt=0, le=1)
    """This share of the rows of each split, rounded to the nearest row."""
    seed: int = Field(0, ge=0, lt=2**64)
    """Which rows are drawn."""
    stratify_by: str | None = Field(None, min_length=1)
    """Column whose values keep their shares in what is drawn, to the row."""

    @model_validator(mode="after")
    def _check(self) -> SampleSection:
        if (self.n is None) == (self.fraction is None):
            raise ValueError("give either n or fraction")
        return self
