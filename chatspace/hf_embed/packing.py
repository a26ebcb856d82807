"""Packed attention: rows joined end to end, (1, n_tokens), each token seeing its own row alone.

It is registered with transformers as an attention implementation, so that every model which takes
its attention from there is packed without code of its own. On a GPU it is PyTorch's variable-length
flash attention; on a CPU rows of equal length, which a sorted batch has next to each other, are
attended together.

Not covered: attention with sinks, a soft cap, or learned biases (MPNet's are in `mpnet`).

Source: `transformers.AttentionInterface`; names and meaning of the arguments as in transformers'
`modeling_flash_attention_utils.py`, where tokens less than `sliding_window` apart see each other.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from transformers import AttentionInterface

from chatspace.hf_embed.bucketing import Group

PACKED = "chatspace_packed"
_NOT_COVERED = ("softcap", "position_bias", "s_aux", "cache")
_REMEMBERED_MASK = 2**20  # bytes; larger masks are made each time
_WINDOW_STEP = 512  # queries of a row with a sliding window that are attended at a time
_SCORES_PER_STEP = 2**19  # one MiB in bfloat16: what a core's second-level cache holds
# In tokens: shorter rows lose in making code for each shape what they gain; of longer ones all
# scores of a head, which are held, would be above 32 MiB.
_SHORTEST_IN_STEPS, _LONGEST_IN_STEPS = 128, 4096


class States(NamedTuple):
    """Queries, keys and values of one shape; what the dimensions are, the functions say."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which tokens of its row a token sees, and how its scores are scaled.

    Attributes:
        scale: factor of the scores; None for one over the root of the head's size.
        causal: only those before it, and itself.
        window: only those less than this many tokens away.
    """

    scale: float | None = None
    causal: bool = False
    window: int | None = None


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Returns the attention of joined rows, (1, n_tokens, n_heads, head_dim), and no weights.

    Args:
        module: the layer; it says whether it is causal where `options` do not.
        query: (1, n_heads, n_tokens, head_dim).
        key: the same, with as many heads or a divisor of that.
        value: as `key`.
        attention_mask: must be None; rows see themselves alone.
        options: `scaling`, `is_causal` and `sliding_window` of the layer; `cu_seq_lens_q`,
            `max_length_q` and `row_groups` of `FlatTokens.features`.

    Raises:
        NotImplementedError: the layer wants something that is not covered.
    """
    wanted = [name for name in _NOT_COVERED if options.get(name) is not None]
    if attention_mask is not None or wanted:
        raise NotImplementedError(f"packed attention with {', '.join(wanted) or 'a mask'}")
    causal = options.get("is_causal")
    scope = Scope(
        scale=options.get("scaling"),
        causal=bool(getattr(module, "is_causal", False) if causal is None else causal),
        window=options.get("sliding_window"),
    )
    # Each (n_tokens, n_heads, head_dim)
    states = States(*(part[0].transpose(0, 1) for part in (query, key, value)))
    if query.is_cuda:
        out = _flash(states, options["cu_seq_lens_q"], options["max_length_q"], scope)
    else:
        out = _by_length(states, options["row_groups"], scope)
    return out[None], None


AttentionInterface.register(PACKED, attend)
# No mask function is registered beside it: transformers then makes no mask at all.


def _flash(states: States, starts: torch.Tensor, longest: int, scope: Scope) -> torch.Tensor:
    """Returns (n_tokens, n_heads, head_dim); `starts` are (n_rows + 1,) int32."""
    from torch.nn.attention.varlen import varlen_attn

    reach = -1 if scope.window is None else scope.window - 1
    out = varlen_attn(
        *states,
        starts,
        starts,
        longest,
        longest,
        scale=scope.scale,
        window_size=(reach, 0 if scope.causal else reach),
        enable_gqa=states.k.shape[1] != states.q.shape[1],
        num_splits=1,  # a row's result must not depend on the others in its batch
    )
    assert isinstance(out, torch.Tensor)
    return out


def _by_length(states: States, groups: Sequence[Group], scope: Scope) -> torch.Tensor:
    """Returns (n_tokens, n_heads, head_dim)."""
    q, k, v = states
    n_shared = q.shape[1] // k.shape[1]
    if n_shared > 1:  # heads that share keys and values get copies
        k, v = (part.repeat_interleave(n_shared, dim=1) for part in (k, v))
    return attend_groups(States(q, k, v), ((group, None) for group in groups), scope)


def attend_groups(
    states: States, groups: Iterable[tuple[Group, torch.Tensor | None]], scope: Scope
) -> torch.Tensor:
    """Returns the attention of joined rows, each (n_tokens, n_heads, head_dim).

    Args:
        states: as many heads of each.
        groups: runs of rows of one length, each with the bias of `attend_rows`.
        scope: the same for all.
    """
    out = torch.empty_like(states.v)
    start = 0
    for (n_rows, length), bias in groups:
        piece = slice(start, start + n_rows * length)
        rows = States(*(rows_of(part[piece], length) for part in states))
        rows_of(out[piece], length).copy_(attend_rows(rows, bias, scope))
        start += n_rows * length
    return out


def rows_of(states: torch.Tensor, length: int) -> torch.Tensor:
    """Returns (n_tokens, n_heads, head_dim) seen as (n_rows, n_heads, length, head_dim)."""
    return states.view(-1, length, *states.shape[1:]).transpose(1, 2)


def attend_rows(states: States, bias: torch.Tensor | None, scope: Scope) -> torch.Tensor:
    """Returns the attention of rows of one length, (n_rows, n_heads, length, head_dim).

    Args:
        states: each of that shape.
        bias: (..., length, length), added to the scores; None for nothing.
        scope: without a bias.
    """
    length = states.q.shape[2]
    if bias is None and scope.window is not None and scope.window < length:
        return _attend_in_window(states, scope, scope.window - 1)
    is_plain = bias is None and not scope.causal and states.q.dtype == torch.bfloat16
    if is_plain and _SHORTEST_IN_STEPS <= length <= _LONGEST_IN_STEPS and not _has_amx():
        return _attend_in_steps(states, scope.scale or states.q.shape[-1] ** -0.5)
    return torch.nn.functional.scaled_dot_product_attention(
        *states, attn_mask=bias, is_causal=scope.causal and bias is None, scale=scope.scale
    )


def _attend_in_window(states: States, scope: Scope, reach: int) -> torch.Tensor:
    """Returns what `attend_rows` does, some queries at a time with the keys that these reach.

    Args:
        states: each (n_rows, n_heads, length, head_dim).
        scope: with a window.
        reach: how many tokens away a token sees.
    """
    out, length = torch.empty_like(states.v), states.v.shape[2]
    for start in range(0, length, _WINDOW_STEP):
        stop = min(start + _WINDOW_STEP, length)
        first, last = max(0, start - reach), stop if scope.causal else min(length, stop + reach)
        shape = (stop - start, last - first)
        make = _remembered if shape[0] * shape[1] <= _REMEMBERED_MASK else _seen
        out[:, :, start:stop] = torch.nn.functional.scaled_dot_product_attention(
            states.q[:, :, start:stop],
            states.k[:, :, first:last],
            states.v[:, :, first:last],
            attn_mask=make(shape, start - first, reach, scope.causal),
            scale=scope.scale,
        )
    return out


def _attend_in_steps(states: States, scale: float) -> torch.Tensor:
    """Returns what `attend_rows` does, by batched products over as many heads as the cache holds.

    Without AMX, PyTorch's own attention computes bfloat16 in float32 on a CPU; oneDNN's batched
    products do not, and took half the time.
    """
    shape, length = states.v.shape, states.v.shape[2]
    q, k, v = (part.reshape(-1, length, part.shape[-1]) for part in states)
    out = torch.empty_like(v)  # (n_rows * n_heads, length, head_dim)
    step = max(1, _SCORES_PER_STEP // length**2)
    scores = q.new_empty(min(step, len(q)), length, length)
    for start in range(0, len(q), step):
        part = slice(start, start + step)
        some = scores[: len(q[part])]  # (step, length, length)
        torch.baddbmm(some, q[part], k[part].transpose(1, 2), beta=0, alpha=scale, out=some)
        torch.softmax(some, -1, out=some)
        torch.bmm(some, v[part], out=out[part])
    return out.view(shape)


def flash_is_missing() -> bool:
    """Returns whether this PyTorch is too old for what `_flash` asks of it."""
    from torch.nn.attention.varlen import varlen_attn

    return not {"enable_gqa", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys()


def _seen(shape: tuple[int, int], n_before: int, reach: int, causal: bool) -> torch.Tensor:
    """Returns which keys each query sees, (n_queries, n_keys).

    Args:
        shape: of the result.
        n_before: keys that stand before the one at the place of the first query.
        reach: how many tokens away a query sees.
        causal: only back.
    """
    seen = torch.ones(shape, dtype=torch.bool)
    return seen.triu_(n_before - reach).tril_(n_before + (0 if causal else reach))


_remembered = lru_cache(maxsize=64)(_seen)


@lru_cache(maxsize=1)
def _has_amx() -> bool:
    return bool(torch.cpu._is_amx_tile_supported())
