"""Tiny sentence-transformers models, built by code in seconds: the same bytes in every build."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("bert-mean", "bert-cls", "qwen3-last")
VOCABULARY = 1024
BERT_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
END = "<|endoftext|>"


def build(kind: str, folder: Path) -> Path:
    """Builds the model `kind` (one of `KINDS`) in `folder`, about 1 MB, and returns the folder."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    inner = folder / "transformers"
    tokenizer = _qwen_tokenizer() if kind == "qwen3-last" else _bert_tokenizer()
    tokenizer.save_pretrained(inner)
    _random_model(kind, tokenizer).save_pretrained(inner)
    transformer = Transformer(str(inner))
    size = transformer.get_embedding_dimension()
    mode = {"bert-mean": "mean", "bert-cls": "cls", "qwen3-last": "lasttoken"}[kind]
    modules: list[Any] = [transformer, Pooling(size, pooling_mode=mode)]
    if kind != "bert-cls":  # so that vectors of other lengths than one are met too
        modules.append(Normalize())
    prompts = {"query": "Instruct: find what answers the question\nQuery:", "document": ""}
    model = SentenceTransformer(modules=modules, device="cpu", prompts=prompts)
    model.save(str(folder), create_model_card=False)
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()
    return folder


def _corpus() -> Iterator[str]:
    from pydoc_data.topics import topics

    return iter(topics.values())


def _word_pieces() -> list[str]:
    """Characters and the most frequent words; the library's own trainer orders ties at random."""
    words = Counter(re.findall(r"[a-z]+", " ".join(_corpus()).lower()))
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    pieces = [*BERT_SPECIALS, *letters, *(f"##{letter}" for letter in letters)]
    frequent = sorted((word for word in words if len(word) > 1), key=lambda w: (-words[w], w))
    return [*pieces, *frequent][:VOCABULARY]


def _bert_tokenizer() -> Any:
    """Words and their pieces, lower-cased, as BERT reads text."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(_word_pieces())}
    backend = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    backend.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=128,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _qwen_tokenizer() -> Any:
    """Byte pairs, padded on the left, an end token after each text, no chat template."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, 0)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        padding_side="left",
        pad_token=END,
        eos_token=END,
    )


def _random_model(kind: str, tokenizer: Any) -> Any:
    """Random weights, wide enough that different texts get clearly different vectors."""
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "initializer_range": 0.1 if kind == "qwen3-last" else 0.2,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "qwen3-last":
            return Qwen3Model(
                Qwen3Config(
                    **sizes,
                    num_attention_heads=4,
                    num_key_value_heads=2,
                    head_dim=32,
                    max_position_embeddings=512,
                )
            )
        return BertModel(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=256))


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
