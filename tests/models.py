"""Tiny sentence-transformers models, built by code in seconds: the same bytes in every build.

Each has what is particular in the real models of its family: where positions begin, which side is
padded, how far a token sees, how many heads there are for keys. The weights are random, large
enough that other texts, and the same words in another order, get clearly different vectors, and
small enough that half precision keeps them.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

VOCABULARY = 1024
END = "<|endoftext|>"
QUERY = "Instruct: find what answers the question\nQuery:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """How a family reads text.

    Attributes:
        pieces: `words` are lower-cased words and their pieces, `bytes` are byte pairs.
        specials: their ids are their places.
        template: what is put around a text `$A`.
        roles: which special token is `pad_token`, `cls_token` and so on.
        side: where short rows are padded.
        limit: longest row, in tokens.
        type_ids: whether the model takes `token_type_ids`.
    """

    pieces: str
    specials: tuple[str, ...]
    template: str
    roles: Mapping[str, str]
    side: str = "right"
    limit: int = 128
    type_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What a tiny model is made of.

    Attributes:
        family: name of the config class in transformers, without `Config`.
        tokens: how it reads text.
        pooling: how the vectors of a row's tokens become one.
        model: name of the model class [`family` and `Model`].
        config: what its config says beyond `_SIZES`, or instead.
        word_weight: what the vectors of words are multiplied with, where without it the vectors of
            their places, which all texts share, would make all texts alike.
        dense: widths of linear layers after the pooling.
        normalize: whether vectors are scaled to length one.
    """

    family: str
    tokens: Tokens
    pooling: str
    model: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    word_weight: float = 1.0
    dense: tuple[int, ...] = ()
    normalize: bool = True


_BERT_ROLES = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_FAIRSEQ_ROLES = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
_WORDS: dict[str, Any] = {
    "pieces": "words",
    "specials": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "template": "[CLS] $A [SEP]",
    "roles": _BERT_ROLES,
}
_FAIRSEQ: dict[str, Any] = {
    "specials": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    "template": "<s> $A </s>",
    "roles": _FAIRSEQ_ROLES,
}
_BERT_TOKENS = Tokens(**_WORDS, type_ids=True)
_ROBERTA_TOKENS = Tokens(**_FAIRSEQ, pieces="bytes")
_QWEN_TOKENS = Tokens(
    pieces="bytes",
    specials=(END,),
    template=f"$A {END}",
    roles={"pad_token": END, "eos_token": END},
    side="left",
    limit=512,
)
_MISTRAL_TOKENS = Tokens(
    pieces="bytes",
    specials=("<unk>", "<s>", "</s>"),
    template="<s> $A </s>",
    roles={
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
    },
    side="left",
)
_GEMMA_TOKENS = Tokens(
    pieces="bytes",
    specials=("<pad>", "<eos>", "<bos>", "<unk>"),
    template="<bos> $A <eos>",
    roles={
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "unk_token": "<unk>",
    },
)
_T5_TOKENS = Tokens(
    pieces="bytes",
    specials=("<pad>", "</s>", "<unk>"),
    template="$A </s>",
    roles={"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
)

_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
}
_BERT = {"max_position_embeddings": 256, "initializer_range": 0.2}
# Positions begin after the padding token's id, 1, so that 130 of them are just enough for 128.
_ROBERTA = {"max_position_embeddings": 130, "type_vocab_size": 1, "initializer_range": 0.18}
_QWEN = {
    # Rows are padded with the end token, which has a vector all the same.
    "pad_token_id": None,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}

_TABLE: dict[str, Kind] = {
    "bert-mean": Kind(
        family="Bert", tokens=_BERT_TOKENS, pooling="mean", config=_BERT, word_weight=2
    ),
    "bert-cls": Kind(
        family="Bert",
        tokens=_BERT_TOKENS,
        pooling="cls",
        config=_BERT,
        word_weight=2,
        normalize=False,  # so that vectors of other lengths than one are met too
    ),
    "qwen3-last": Kind(family="Qwen3", tokens=_QWEN_TOKENS, pooling="lasttoken", config=_QWEN),
    # A decoder whose config, not its class, says that tokens see those after them too.
    "qwen3-both-ways-mean": Kind(
        family="Qwen3", tokens=_QWEN_TOKENS, pooling="mean", config={**_QWEN, "is_causal": False}
    ),
    "roberta-mean": Kind(
        family="Roberta", tokens=_ROBERTA_TOKENS, pooling="mean", config=_ROBERTA, word_weight=2
    ),
    "xlm-roberta-cls": Kind(
        family="XLMRoberta", tokens=_ROBERTA_TOKENS, pooling="cls", config=_ROBERTA, word_weight=2
    ),
    "mpnet-mean": Kind(
        family="MPNet",
        tokens=Tokens(**_FAIRSEQ, pieces="words"),
        pooling="mean",
        config={"max_position_embeddings": 130, "initializer_range": 0.2},
        word_weight=3,
    ),
    "distilbert-mean": Kind(
        family="DistilBert",
        tokens=Tokens(**_WORDS),
        pooling="mean",
        config={**_BERT, "hidden_dim": 128, "initializer_range": 0.14},
    ),
    "albert-mean": Kind(
        family="Albert",
        tokens=_BERT_TOKENS,
        pooling="mean",
        config={**_BERT, "embedding_size": 32},
        word_weight=2,
    ),
    "nomic-mean": Kind(
        family="NomicBert",
        tokens=_BERT_TOKENS,
        pooling="mean",
        config={**_BERT, "initializer_range": 0.12},
        word_weight=2,
    ),
    "modernbert-mean": Kind(
        family="ModernBert",
        tokens=Tokens(**_WORDS),
        pooling="mean",
        config={
            # A token sees 16 tokens on either side in every other layer.
            "local_attention": 32,
            "global_attn_every_n_layers": 2,
            "initializer_range": 0.2,
            "cls_token_id": 2,
            "bos_token_id": 2,
            "sep_token_id": 3,
            "eos_token_id": 3,
        },
    ),
    "gemma3-mean": Kind(
        family="Gemma3Text",
        tokens=_GEMMA_TOKENS,
        pooling="mean",
        config={
            "num_key_value_heads": 1,
            "head_dim": 48,
            "query_pre_attn_scalar": 32,  # attention is not scaled by its heads' width
            "use_bidirectional_attention": True,
            # A token sees 16 tokens on either side in every other layer.
            "sliding_window": 32,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.1,
        },
        dense=(128, 64),
    ),
    "mistral-last": Kind(
        family="Mistral",
        tokens=_MISTRAL_TOKENS,
        pooling="lasttoken",
        config={
            **_QWEN,
            "head_dim": 16,
            # A token sees itself and the 31 before it, in every layer.
            "sliding_window": 32,
        },
    ),
    "phi3-last": Kind(
        family="Phi3",
        tokens=_QWEN_TOKENS,
        pooling="lasttoken",
        config={
            **_QWEN,
            "pad_token_id": 1,  # not the end token, whose vector would be all zeros
            "bos_token_id": 0,
            "eos_token_id": 0,
            "head_dim": 16,
            # In a batch with any row above 64 tokens all positions turn more slowly.
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0] * 8,
                "long_factor": [float(2 + i) for i in range(8)],
                "original_max_position_embeddings": 64,
            },
        },
    ),
    "t5-mean": Kind(
        family="T5",
        model="T5EncoderModel",
        tokens=_T5_TOKENS,
        pooling="mean",
        config={"d_kv": 32, "d_ff": 128, "feed_forward_proj": "gated-gelu"},
    ),
}
KINDS = ("bert-mean", "bert-cls", "qwen3-last")
ALL_KINDS = tuple(_TABLE)


def build(kind: str, folder: Path) -> Path:
    """Builds the model `kind` (one of `ALL_KINDS`) in `folder`, about 1 MB; returns the folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import (
        Dense,
        Normalize,
        Pooling,
        Transformer,
    )

    parts = _TABLE[kind]
    inner = folder / "transformers"
    tokenizer = _tokenizer(parts.tokens)
    tokenizer.save_pretrained(inner)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _random_model(parts, tokenizer).save_pretrained(inner)
        transformer = Transformer(str(inner))
        size = transformer.get_embedding_dimension()
        modules: list[Any] = [transformer, Pooling(size, pooling_mode=parts.pooling)]
        for width in parts.dense:
            linear = Dense(size, width, bias=False, activation_function=torch.nn.Identity())
            modules.append(linear)
            size = width
    if parts.normalize:
        modules.append(Normalize())
    prompts = {"query": QUERY, "document": ""}
    model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    model.save(str(folder), create_model_card=False)
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()
    return folder


def _random_model(parts: Kind, tokenizer: Any) -> Any:
    import torch
    import transformers

    values: dict[str, Any] = {**_SIZES, "pad_token_id": tokenizer.pad_token_id, **parts.config}
    config = getattr(transformers, f"{parts.family}Config")(**values)
    model = getattr(transformers, parts.model or f"{parts.family}Model")(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(parts.word_weight)
    return model


def _tokenizer(tokens: Tokens) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    make = {"words": _word_piece_backend, "bytes": _byte_pair_backend}[tokens.pieces]
    backend = make(tokens)
    ids = [(token, index) for index, token in enumerate(tokens.specials)]
    pair = f"{tokens.template} {tokens.template.split(' ', 1)[1].replace('$A', '$B:1')}"
    backend.post_processor = processors.TemplateProcessing(
        single=tokens.template,
        pair=pair if tokens.type_ids else None,
        special_tokens=[(token, index) for token, index in ids if token in tokens.template],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokens.limit,
        model_input_names=inputs if tokens.type_ids else [inputs[0], inputs[2]],
        padding_side=tokens.side,
        **tokens.roles,
    )


def _word_piece_backend(tokens: Tokens) -> Any:
    """Words and their pieces, lower-cased, as BERT reads text."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece

    pieces = [*tokens.specials, *_word_pieces()][:VOCABULARY]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    backend = Tokenizer(WordPiece(vocabulary, unk_token=tokens.roles["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


@cache
def _word_pieces() -> list[str]:
    """Characters and the most frequent words; the library's own trainer orders ties at random."""
    words = Counter(re.findall(r"[a-z]+", " ".join(_corpus()).lower()))
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda w: (-words[w], w))
    return [*letters, *(f"##{letter}" for letter in letters), *frequent]


def _byte_pair_backend(tokens: Tokens) -> Any:
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(tokens.specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    backend.decoder = decoders.ByteLevel()
    return backend


def _corpus() -> Iterator[str]:
    from pydoc_data.topics import topics

    return iter(topics.values())


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
