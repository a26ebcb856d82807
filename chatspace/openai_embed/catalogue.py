"""What is known of OpenAI's embedding models without asking: prices, vector length, encoding."""

from __future__ import annotations

from dataclasses import dataclass

PRICES_OF = "2026-05"
"""Month in which the prices below were last compared with https://openai.com/api/pricing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """One embedding model.

    Attributes:
        usd_per_million: price of a million tokens, US dollars.
        batch_usd_per_million: the same through the Batch API, None where it is not known.
        dim: length of a vector that is not shortened.
        can_shorten: whether it takes `dimensions`.
        encoding: how tiktoken calls its tokens.
    """

    usd_per_million: float
    batch_usd_per_million: float | None
    dim: int
    can_shorten: bool
    encoding: str = "cl100k_base"


# Source: https://platform.openai.com/docs/pricing#embeddings and the models' own pages.
KNOWN: dict[str, KnownModel] = {
    "text-embedding-3-small": KnownModel(
        usd_per_million=0.02, batch_usd_per_million=0.01, dim=1536, can_shorten=True
    ),
    "text-embedding-3-large": KnownModel(
        usd_per_million=0.13, batch_usd_per_million=0.065, dim=3072, can_shorten=True
    ),
    "text-embedding-ada-002": KnownModel(
        usd_per_million=0.10, batch_usd_per_million=None, dim=1536, can_shorten=False
    ),
}


def usd_per_million(name: str, mode: str) -> float | None:
    """Returns the price of a million tokens, None where the table does not have it.

    Args:
        name: the model.
        mode: `direct` or `batch`.
    """
    model = KNOWN.get(name)
    if model is None:
        return None
    return model.batch_usd_per_million if mode == "batch" else model.usd_per_million
