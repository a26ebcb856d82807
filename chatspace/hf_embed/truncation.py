"""Vectors cut to their first numbers, for models that were trained so that these do.

Not covered: a model that scales its vectors to length one in code of its own, where no module says
so; `encode.normalize: true` does it after the cut.

Source: Kusupati et al., "Matryoshka Representation Learning", NeurIPS 2022.
"""

from __future__ import annotations

import torch

from chatspace.hf_embed.encoder import Encoder
from chatspace.hf_embed.resolve import refuse_too_long_cut
from chatspace.hf_embed.tokens import Features


def truncate(encoder: Encoder, dim: int | None) -> None:
    """Has an encoder give the first `dim` numbers of each vector, before it scales them.

    Raises:
        ModelError: `dim` is more than the model gives.
    """
    if dim is None:
        return
    refuse_too_long_cut(dim, encoder.dim)
    whole = encoder.forward

    def cut(features: Features) -> torch.Tensor:
        return whole(features)[:, :dim]

    encoder.forward, encoder.dim = cut, dim
    encoder.runtime["embedding_dim"] = dim
