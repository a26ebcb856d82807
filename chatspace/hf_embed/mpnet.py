"""MPNet, packed on a CPU: its attention is its own, with a bias for each distance of two tokens.

The model hands its layers one bias for all rows. Here it hands them the rows and a bias for each of
their lengths; the attention of its layers is replaced by one that reads them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch

from chatspace.hf_embed.bucketing import Group
from chatspace.hf_embed.packing import Scope, States, attend_groups


def is_mpnet(model: Any) -> bool:
    """Returns whether a transformers model is MPNet."""
    return getattr(model.config, "model_type", None) == "mpnet"


def pack_mpnet(model: Any) -> Callable[[], None]:
    """Makes a transformers MPNet take joined rows, and only those; returns what undoes it."""
    current = threading.local()  # several threads may be in the same model
    plain_forward, no_mask = model.forward, torch.empty(1, 1, 1, 1)

    def forward(*, row_groups: Sequence[Group], **features: Any) -> Any:
        current.groups = row_groups
        # A finished mask, which nobody reads: else one of (n_tokens, n_tokens) is made.
        return plain_forward(attention_mask=no_mask, **features)

    plain_bias = model.encoder.compute_position_bias

    def biases(self: Any, hidden: torch.Tensor) -> list[tuple[Group, torch.Tensor]]:
        """Returns the groups of rows, each with its bias, (1, n_heads, length, length)."""
        return [
            (group, plain_bias(hidden.new_empty(1, group[1], 1)))  # reads the shape alone
            for group in current.groups
        ]

    # Not a hook: sentence-transformers calls `forward` itself.
    model.forward = forward
    model.encoder.compute_position_bias = MethodType(biases, model.encoder)
    attentions = [layer.attention.attn for layer in model.encoder.layer]
    for attention in attentions:
        attention.forward = MethodType(_attention, attention)

    def undo() -> None:
        del model.forward
        del model.encoder.compute_position_bias
        for attention in attentions:
            del attention.forward

    return undo


def _attention(
    self: Any,
    hidden: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_bias: Sequence[tuple[Group, torch.Tensor]] = (),
    **_: Any,
) -> tuple[torch.Tensor]:
    """Takes the place of `MPNetSelfAttention.forward`; `hidden` is (1, n_tokens, hidden_size)."""
    heads = (self.num_attention_heads, self.attention_head_size)
    q, k, v = (linear(hidden)[0].view(-1, *heads) for linear in (self.q, self.k, self.v))
    out = attend_groups(States(q, k, v), position_bias, Scope())  # (n_tokens, n_heads, head_dim)
    return (self.o(out.flatten(1)[None]),)
