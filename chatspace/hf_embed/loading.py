"""A model is loaded as sentence-transformers loads it, checked, and made an `Encoder`.

Not covered: models whose input is not text.
"""

from __future__ import annotations

import logging
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize
from transformers.utils.logging import disable_progress_bar

from chatspace.errors import ModelError, UnfitEnvironmentError
from chatspace.hf_embed.bucketing import Batch, Buckets
from chatspace.hf_embed.compiling import compile_model
from chatspace.hf_embed.device import (
    fitting_budget,
    note_on_dtype,
    pick_budget,
    pick_device,
    pick_dtype,
    pick_streams,
    pick_workers,
    prepare_gpu,
)
from chatspace.hf_embed.encoder import Encoder, Forward, is_out_of_memory, to_device
from chatspace.hf_embed.fitting import Embed, Fitting, long_rope_start
from chatspace.hf_embed.hub import ask_hub, quiet
from chatspace.hf_embed.model_input import NO_LIMIT, choose_tokenizer, resolve_prompt, set_limit
from chatspace.hf_embed.spec import EncodeSection, ModelSection
from chatspace.hf_embed.tokens import FastTokenizer, Features, RowTokenizer, Tokens

# What transformers says where it has not got the attention that it was asked for.
_ABOUT_ATTENTION = re.compile(
    r"attn_implementation|attention implementation|flash.?attention|flash.?attn|flex.?attention"
    r"|scaled_dot_product_attention|`kernels`",
    re.IGNORECASE,
)
TRIM_TO = 8  # padding to less than this gains nothing: vector units work on whole groups anyway


def load_encoder(
    section: ModelSection,
    encode: EncodeSection,
    *,
    path: str | None = None,
    threads: int | None = None,
) -> Encoder:
    """Loads a model and returns its encoder, compiled if asked, but not warmed up.

    Args:
        section: which model, and how.
        encode: how batches are made.
        path: the model's folder; None for a name on the hub.
        threads: CPU threads that it may use [as many as PyTorch has].

    Raises:
        ModelError: no such model, or it cannot be used as the spec says.
        UnfitEnvironmentError: the device is not there, too small or faulty.
    """
    quiet_libraries()
    device = pick_device(section.device)
    prepare_gpu(device, tf32=bool(section.tf32))
    model = load_model(section, path, device)
    encoder = _encoder(model, section, encode, threads or torch.get_num_threads())
    compiled = encode.compile and isinstance(encoder.tokenizer, FastTokenizer)
    if device.type == "cuda":
        encoder.take_budget(fitting_budget(encode, encoder))
    if compiled:
        encoder.forward = compile_model(model, encoder, mode=encode.compile_mode)
    elif encode.compile:
        encoder.notes.append("Not compiled: the batches of this model have no fixed lengths.")
    encoder.runtime.update(_model_facts(model, section, device), **_batch_facts(encoder, compiled))
    return encoder


def _encoder(model: Any, section: ModelSection, encode: EncodeSection, threads: int) -> Encoder:
    """Returns the encoder of a loaded model, made fast unless it is to be compiled."""
    device, notes = model.device, note_on_dtype(section.dtype, model.device)
    prompt = resolve_prompt(model, section, notes)
    limit = set_limit(model, section)
    normalize = take_normalize(model, encode.normalize)
    tokenizer = choose_tokenizer(model, prompt, limit, notes)
    forward = _forward(model)
    fitting = _fitting(model, tokenizer, forward, section)
    compiled = encode.compile and isinstance(tokenizer, FastTokenizer)
    packs = not compiled and fitting.fit(pack=_may_pack(section, encode), notes=notes)
    rope_start = long_rope_start(model.transformers_model, limit)
    # One pass at a time where a pass sets how positions turn.
    workers = 1 if rope_start else pick_workers(encode, device, threads, compiled)
    return Encoder(
        tokenizer=tokenizer,
        forward=forward,
        device=device,
        dim=fitting.dim,
        max_tokens=limit if limit < NO_LIMIT else None,
        buckets=pick_buckets(encode, limit, rope_start),
        budget=pick_budget(encode, device, packs),
        packs=packs,
        trim_to=None if compiled else TRIM_TO,
        normalize=normalize,
        workers=workers,
        threads=threads,
        around_worker=pick_streams(device, workers, foreign_code=section.trust_remote_code),
        notes=notes,
    )


def _may_pack(section: ModelSection, encode: EncodeSection) -> bool:
    """Returns whether rows may be joined; an attention that the spec names is not replaced."""
    free = section.attention_impl == "auto" or section.attention_impl.startswith("flash_attention")
    return encode.batching != "buckets" and free


def quiet_libraries() -> None:
    """Leaves only warnings of the libraries that load a model, and no progress bars."""
    quiet()
    for name in ("transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()


def pick_buckets(encode: EncodeSection, limit: int, no_longer_with: int | None = None) -> Buckets:
    """Returns the padded lengths, none beyond the longest row in tokens."""
    return Buckets(
        min_tokens=encode.bucket_min_tokens,
        max_tokens=min(encode.bucket_max_tokens or limit, limit),
        limit=limit,
        no_longer_with=no_longer_with,
    )


def load_model(section: ModelSection, path: str | None, device: torch.device) -> Any:
    """Returns the model as sentence-transformers loads it, in the dtype of the spec.

    Raises:
        ModelError: there is no such model, or its files or options do not fit.
        UnfitEnvironmentError: the device is too small or faulty.
    """
    if path is not None and not Path(path).is_dir():
        raise ModelError(
            f"Model folder is gone: model.name={section.name}; {path} does not exist here. "
            f"Put it where compute nodes can read it, then plan the run again."
        )
    reached = path is not None or ask_hub(section.name, section.revision).reached
    model_kwargs = {"dtype": pick_dtype(section.dtype, device), **section.model_kwargs}
    if section.attention_impl != "auto":
        model_kwargs["attn_implementation"] = section.attention_impl
    try:
        model = SentenceTransformer(
            path or section.name,
            device=str(device),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
            # Out of reach of the hub, each file would be asked for again and again.
            local_files_only=not reached,
            model_kwargs=model_kwargs,
            processor_kwargs=dict(section.tokenizer_kwargs),
        )
    except (OSError, ValueError, ImportError, TypeError, KeyError, RuntimeError) as error:
        refuse_fault(section, path, error)
        refuse_attention(section, error)
        if not reached:
            raise ModelError(_out_of_reach(section)) from error
        raise ModelError(_cannot_load(section, path, error, _next_step(section, path))) from error
    return model.eval()


def refuse_fault(section: ModelSection, path: str | None, error: Exception) -> None:
    """Tells a fault of the device apart from one of the model; another device may do.

    Raises:
        UnfitEnvironmentError: the device is too small or faulty.
    """
    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        next_step = "Use a device with more memory, or one that nobody else uses"
    elif isinstance(error, torch.AcceleratorError):
        next_step = "Try another node; `chatspace doctor --node` looks at driver and GPU"
    else:
        return
    raise UnfitEnvironmentError(_cannot_load(section, path, error, next_step)) from error


def refuse_attention(section: ModelSection, error: Exception) -> None:
    """Tells an attention that is not to be had apart from a model that cannot be loaded.

    Raises:
        ModelError: the spec names an attention, and the error is about it.
    """
    if section.attention_impl == "auto" or not _ABOUT_ATTENTION.search(str(error)):
        return
    reason = str(error).rpartition("following error: ")[2].split(". ")[0]
    raise ModelError(
        f"Model cannot be loaded: model.attention_impl={section.attention_impl}; "
        f"{_shortened(reason, 160)}. Use auto, sdpa, eager, or install flash-attn on a GPU node "
        f"and say flash_attention_2."
    ) from error


def _shortened(text: str, n_chars: int) -> str:
    """Returns the first words of a text, in one line and without its full stop."""
    short = textwrap.shorten(text, n_chars, placeholder=" ...").rstrip(". ")
    return short or " ".join(text.split())[:n_chars].rstrip(". ")


def _cannot_load(
    section: ModelSection, path: str | None, error: BaseException, next_step: str
) -> str:
    where = f" ({path})" if path not in (None, section.name) else ""
    reason = _shortened(str(error), 300) or type(error).__name__
    return f"Model cannot be loaded: model.name={section.name}{where}; {reason}. {next_step}."


def _out_of_reach(section: ModelSection) -> str:
    revision = f", revision {section.revision}" if section.revision else ""
    state = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the hub is out of reach"
    return (
        f"Model cannot be loaded: model.name={section.name}{revision}; {state}, and the cache "
        f"{constants.HF_HUB_CACHE} does not have it whole. Fetch it where there is a network with "
        f"`chatspace stage SPEC`, or put the path of a folder in model.name."
    )


def _next_step(section: ModelSection, path: str | None) -> str:
    if path is not None:
        return "Check model.name, model_kwargs and tokenizer_kwargs, and that the folder is whole"
    return (
        "Check the name, or download it where there is a network and put its folder in model.name"
    )


def take_normalize(model: Any, wanted: bool | None) -> bool:
    """Takes the scaling to length one out of the model and returns whether the encoder must do it.

    The encoder does it in float32, where half precision would give lengths of one only to 1 in 300.
    """
    names = [name for name, module in model.named_children() if isinstance(module, Normalize)]
    last = [name for name, _ in model.named_children()][-1]
    if wanted is False:
        for name in names:
            del model._modules[name]
    elif last in names:
        del model._modules[last]
    return last in names if wanted is None else wanted


def _forward(model: Any) -> Forward:
    def forward(features: Features) -> torch.Tensor:
        # A copy, because the model's modules add what they make to the features.
        vectors: torch.Tensor = model(dict(features))["sentence_embedding"]  # (n_rows, dim)
        return vectors if model.truncate_dim is None else vectors[:, : model.truncate_dim]

    return forward


def _embed(forward: Forward, device: torch.device) -> Embed:
    def embed(tokens: Tokens, batch: Batch) -> torch.Tensor:
        with torch.inference_mode():
            return forward(to_device(tokens.features(batch), device)).float().cpu()

    return embed


def _fitting(
    model: Any, tokenizer: RowTokenizer, forward: Forward, section: ModelSection
) -> Fitting:
    """Returns the fitting of a model, which has embedded a few texts by then.

    Raises:
        ModelError: the model does not embed them.
        UnfitEnvironmentError: the device is too small or faulty.
    """
    try:
        return Fitting(model, tokenizer, _embed(forward, model.device))
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        refuse_fault(section, None, error)
        refuse_attention(section, error)
        raise ModelError(_cannot_load(section, None, error, "It does not embed a text")) from error


def _batch_facts(encoder: Encoder, compiled: bool) -> dict[str, Any]:
    return {
        "batching": "pack" if encoder.packs else "buckets",
        "workers": encoder.workers,
        "compile": compiled,
        "embedding_dim": encoder.dim,
        "max_tokens": encoder.max_tokens,
    }


def _model_facts(model: Any, section: ModelSection, device: torch.device) -> dict[str, Any]:
    config = getattr(model.transformers_model, "config", None)
    first = next(model.parameters(), None)
    dtype = section.dtype if first is None else str(first.dtype).removeprefix("torch.")
    return {
        "device": str(device),
        "dtype": dtype,
        "attention_impl": getattr(config, "_attn_implementation", None),
    }
