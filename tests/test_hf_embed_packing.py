"""Packed attention against rows attended one by one, on the CPU and with flash attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatspace.hf_embed import packing
from chatspace.hf_embed.bucketing import equal_lengths
from chatspace.hf_embed.packing import Scope, States

SCOPES = [
    Scope(),
    Scope(scale=0.3),
    Scope(causal=True),
    Scope(window=4),
    Scope(causal=True, window=4),
]


def states_of(n_tokens: int, n_heads: int = 4, n_kv_heads: int = 4, size: int = 16) -> States:
    """Returns random states, (n_tokens, n_heads, head_dim), float32."""
    draw = torch.Generator().manual_seed(n_tokens)
    q = torch.randn(n_tokens, n_heads, size, generator=draw)
    k, v = (torch.randn(n_tokens, n_kv_heads, size, generator=draw) for _ in range(2))
    return States(q, k, v)


def one_by_one(states: States, lengths: list[int], scope: Scope) -> torch.Tensor:
    """Returns the attention as its definition has it, each row alone, in float64."""
    n_shared = states.q.shape[1] // states.k.shape[1]
    q, k, v = (part.double() for part in states)
    k, v = k.repeat_interleave(n_shared, 1), v.repeat_interleave(n_shared, 1)
    rows, start = [], 0
    for length in lengths:
        piece = slice(start, start + length)
        scores = torch.einsum("qhd,khd->hqk", q[piece], k[piece])
        scores = scores * (scope.scale or q.shape[-1] ** -0.5)
        apart = torch.arange(length)[:, None] - torch.arange(length)[None, :]
        hidden = torch.zeros(length, length, dtype=torch.bool)
        if scope.causal:
            hidden |= apart < 0
        if scope.window is not None:
            hidden |= apart.abs() >= scope.window
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        rows.append(torch.einsum("hqk,khd->qhd", weights, v[piece]))
        start += length
    return torch.cat(rows)


@pytest.mark.parametrize("scope", SCOPES)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), grouped=st.booleans())
@settings(max_examples=25, deadline=None)
def test_rows_by_length_see_themselves_alone(
    scope: Scope, lengths: list[int], grouped: bool
) -> None:
    states = states_of(sum(lengths), n_kv_heads=2 if grouped else 4)
    found = packing._by_length(states, equal_lengths(np.array(lengths)), scope)
    assert torch.allclose(found.double(), one_by_one(states, lengths, scope), atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5, 8, 40])
@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_windows_of_some_queries_at_a_time_are_the_attention(
    window: int, causal: bool, lengths: list[int]
) -> None:
    states, scope = states_of(sum(lengths)), Scope(window=window, causal=causal)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_WINDOW_STEP", 8)
        found = packing._by_length(states, equal_lengths(np.array(lengths)), scope)
    assert torch.allclose(found.double(), one_by_one(states, lengths, scope), atol=1e-5)


@pytest.mark.parametrize("length", [511, 512, 513, 1300])
def test_long_row_with_a_window_is_the_attention(length: int) -> None:
    states, scope = states_of(length), Scope(window=65)
    found = packing._by_length(states, [(1, length)], scope)
    assert torch.allclose(found.double(), one_by_one(states, [length], scope), atol=1e-5)


@pytest.mark.parametrize("lengths", [[700], [9] * 50, [3, 3, 2]])
def test_steps_in_bfloat16_are_the_attention(
    lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_has_amx", lambda: False)
    states = States(*(part.bfloat16() for part in states_of(sum(lengths))))
    found = packing._by_length(states, equal_lengths(np.array(lengths)), Scope())
    expected = one_by_one(states, lengths, Scope())
    assert torch.allclose(found.double(), expected, atol=0.02)
    assert torch.cosine_similarity(found.double().flatten(), expected.flatten(), dim=0) > 0.9999


def documented_varlen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts: torch.Tensor,
    _: torch.Tensor,
    longest: int,
    __: int,
    **options: Any,
) -> torch.Tensor:
    """Does what PyTorch documents of `varlen_attn`, on the CPU.

    Source: https://docs.pytorch.org/docs/2.12/nn.attention.varlen.html
    """
    assert options["enable_gqa"] == (q.shape[1] != k.shape[1])
    assert starts.dtype == torch.int32 and longest == starts.diff().max()
    left, right = options["window_size"]
    outs = []
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        place = torch.arange(stop - start)
        ahead = place[None, :] - place[:, None]
        seen = ((right < 0) | (ahead <= right)) & ((left < 0) | (-ahead <= left))
        out = torch.nn.functional.scaled_dot_product_attention(
            *(part[start:stop].transpose(0, 1) for part in (q, k, v)),
            attn_mask=seen,
            scale=options["scale"],
            enable_gqa=options["enable_gqa"],
        )
        outs.append(out.transpose(0, 1))
    return torch.cat(outs)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("scope", SCOPES)
def test_flash_is_asked_for_what_rows_by_length_give(
    scope: Scope, n_kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", documented_varlen)
    lengths = [9, 9, 6, 4, 1]
    states = states_of(sum(lengths), n_kv_heads=n_kv_heads)
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32)
    found = packing._flash(states, starts, max(lengths), scope)
    assert torch.allclose(found.double(), one_by_one(states, lengths, scope), atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("n_kv_heads", [4, 2])
@pytest.mark.parametrize("scope", SCOPES)
def test_flash_on_a_gpu_is_the_attention(scope: Scope, n_kv_heads: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    lengths = [300, 9, 9, 6, 1]
    states = States(
        *(p.bfloat16() for p in states_of(sum(lengths), n_kv_heads=n_kv_heads, size=64))
    )
    starts = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    on_gpu = States(*(part.cuda() for part in states))
    found = packing._flash(on_gpu, starts, max(lengths), scope).cpu().double()
    expected = one_by_one(states, lengths, scope)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9999


@pytest.mark.parametrize(
    ("mask", "options", "named"),
    [
        (torch.ones(1, 1, 2, 2), {}, "a mask"),
        (None, {"softcap": 50.0}, "softcap"),
        (None, {"position_bias": torch.zeros(1)}, "position_bias"),
    ],
)
def test_attention_that_is_not_covered_is_refused(
    mask: torch.Tensor | None, options: dict[str, Any], named: str
) -> None:
    states = (part.transpose(0, 1)[None] for part in states_of(2))
    with pytest.raises(NotImplementedError, match=named):
        packing.attend(torch.nn.Identity(), *states, mask, row_groups=[(1, 2)], **options)


def test_this_pytorch_has_the_flash_attention_that_is_asked_for() -> None:
    assert not packing.flash_is_missing()
