"""The run spec of `kind: embed`: a local encoder over a dataset."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from chatspace.spec.base import RunSpec
from chatspace.spec.chunks import check_chunks
from chatspace.spec.section import Section

CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class ModelSection(Section):
    """Which encoder, and how it is loaded."""

    name: str = Field("Qwen/Qwen3-Embedding-0.6B", min_length=1)
    """Model on the Hugging Face hub, or a folder that sentence-transformers can load."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; `auto` is bfloat16 where the hardware computes in it.

    That is a GPU from Ampere on, or a processor with AMX or AVX512_BF16; elsewhere float32.
    """
    tf32: bool | None = None
    """Multiply float32 matrices on a GPU in TensorFloat-32: faster, with fewer bits [false]."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """`auto`, `cpu`, `mps` or `cuda`."""
    attention_impl: str = "auto"
    """Attention implementation of transformers, such as `sdpa`, `eager` or `flash_attention_2`.

    Rows are packed with `auto` and with those of flash attention.
    """
    prompt: str | None = None
    """Text put before every row."""
    prompt_name: str | None = None
    """One of the prompts that the model itself names."""
    trust_remote_code: bool = False
    """Run code that comes with the model."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the model's `from_pretrained`."""
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to the tokenizer's `from_pretrained`."""
    max_tokens: int | None = Field(None, gt=0)
    """Longest row in tokens, special tokens counted [the model's limit]."""
    long_text: Literal["truncate", "error", "chunk"] | None = None
    """What happens to a longer row [truncate]; rows that are cut off are counted.

    With `chunk` it becomes several rows of the output, each the vector of a part of its text.
    """
    chunk_tokens: int | None = Field(None, gt=0)
    """Longest chunk in tokens, prompt and special tokens counted [max_tokens]."""
    overlap_tokens: int | None = Field(None, ge=0)
    """Tokens of a chunk that the next begins with, at most; half a chunk or less [0]."""
    document_vector: bool | None = None
    """Store a vector of each whole row beside its first chunk: the chunks' mean [false]."""
    on_too_long: Literal["truncate", "error"] | None = None
    """Earlier name of `long_text`."""

    @property
    def what_if_long(self) -> Literal["truncate", "error", "chunk"]:
        """What happens to a long row, whichever key says it."""
        return self.long_text or self.on_too_long or "truncate"

    @property
    def limit_tokens(self) -> int | None:
        """Most tokens in one vector, None for the model's limit."""
        return self.chunk_tokens or self.max_tokens

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("prompt and prompt_name exclude each other; keep one")
        if self.long_text is not None and self.on_too_long is not None:
            raise ValueError("on_too_long is the earlier name of long_text; keep long_text")
        check_chunks(
            long_text=self.long_text,
            max_tokens=self.max_tokens,
            chunk_tokens=self.chunk_tokens,
            overlap_tokens=self.overlap_tokens,
            document_vector=self.document_vector,
        )
        return self


class EncodeSection(Section):
    """How rows become batches."""

    batching: Literal["auto", "pack", "buckets"] = "auto"
    """`pack` joins rows end to end and computes no padding; `buckets` pads them to a few lengths.

    `auto` packs, unless the model is compiled. A model that cannot be packed gets buckets and says
    so in the notes of its run.
    """
    tokens_per_batch: int | None = Field(None, gt=0)
    """Tokens in one forward pass, padding counted [on a GPU what fits, up to 131072, or
    32768 with padding; on a CPU 2048, or what is faster in a long run]."""
    batch_size: int | None = Field(None, gt=0)
    """Rows in one forward pass, instead of a token budget."""
    bucket_min_tokens: int = Field(16, gt=0)
    """Smallest bucket, in tokens; buckets double from here, and no batch mixes two of them.

    Together with the same `bucket_max_tokens`, buckets are multiples of it.

    With `compile` a batch is padded to its bucket, else to its longest row, rounded up to 8 tokens.
    """
    bucket_max_tokens: int | None = Field(None, gt=0)
    """Where buckets stop doubling [the model's limit]; longer rows are padded to multiples of it.

    It never cuts a row: `model.max_tokens` does.
    """
    compile: bool = False
    """Compile the model with torch.compile; every bucket is warmed up first."""
    compile_mode: CompileMode | None = None
    """Mode of torch.compile, for `compile: true` [default]."""
    normalize: bool | None = None
    """Scale vectors to length one [as the model says]."""
    workers: int | None = Field(None, gt=0)
    """Forward passes at the same time [one for each CPU thread up to 16, 2 on a GPU].

    They share the weights; on a GPU each has a CUDA stream of its own.
    """
    prefetch_shards: int = Field(1, gt=0)
    """Shards that wait, tokenised, for the encoder."""

    @model_validator(mode="after")
    def _check(self) -> EncodeSection:
        if self.tokens_per_batch is not None and self.batch_size is not None:
            raise ValueError("tokens_per_batch and batch_size exclude each other; keep one")
        if self.compile and self.batching == "pack":
            raise ValueError(
                "compile and batching: pack exclude each other; graphs are made for fixed lengths, "
                "so use batching: buckets, or leave compile out"
            )
        if self.bucket_max_tokens is not None and self.bucket_max_tokens < self.bucket_min_tokens:
            raise ValueError(
                f"bucket_max_tokens={self.bucket_max_tokens} is below "
                f"bucket_min_tokens={self.bucket_min_tokens}"
            )
        return self


class EmbedSpec(RunSpec):
    """One dataset, one encoder, one folder of vectors."""

    UNHASHED: ClassVar[frozenset[tuple[str, str]]] = frozenset(
        {("encode", "prefetch_shards"), ("encode", "workers")}
    )

    kind: Literal["embed"]
    model: ModelSection = ModelSection()
    encode: EncodeSection = EncodeSection()

    # Not in the section, which is read again from plans: those of earlier versions stay readable.
    @model_validator(mode="after")
    def _check_compile_mode(self) -> EmbedSpec:
        mode = self.encode.compile_mode
        if mode is not None and not self.encode.compile:
            raise ValueError(
                f"encode.compile_mode: {mode} needs encode.compile: true; say both, or leave "
                "compile_mode out"
            )
        return self

    @model_validator(mode="after")
    def _check_packing(self) -> EmbedSpec:
        attention = self.model.attention_impl
        if self.encode.batching == "pack" and attention in {"sdpa", "eager", "flex_attention"}:
            raise ValueError(
                f"model.attention_impl: {attention} and encode.batching: pack exclude each other; "
                "leave attention_impl out, or use batching: buckets"
            )
        return self
