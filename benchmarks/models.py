"""Models of real sizes with random weights, built by code, in sentence-transformers' format.

    python benchmarks/models.py bert-base FOLDER

Speed depends on the sizes alone. The weights are random and large enough that different texts get
different vectors, so that a wrong vector can be told from a right one. The tokenizers are of the
real models' kinds, trained on the English that the texts are made of, and about as fast.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from corpora import LIMIT, exact, paragraphs
from minilm import token_count

PIECES = 4096
"""Tokens of a vocabulary: so many make 1.4 tokens of a word, about as many as MiniLM's."""
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
MEAN_TAIL = 105  # tokens of a row of the heavy tail
N_SAMPLE = 256
_COMPLETE = "modules.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What decides how much a model computes.

    Attributes:
        family: `bert` sees both sides of a token and is averaged; `qwen3` sees the left side alone,
            and its last token is the vector.
        vocabulary: rows of the embedding table; the tokenizer uses the first `PIECES`.
        positions: longest row in tokens.
        gain: how much random layers amplify; weights are drawn with `gain / sqrt(hidden)`.
    """

    family: Literal["bert", "qwen3"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int = 512
    gain: float = 1.0

    def linear_parameters(self) -> int:
        """Returns the weights that every token is multiplied with."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        n_matrices = 2 if self.family == "bert" else 3  # of the feed-forward part
        attention = 2 * self.hidden * wide + 2 * self.hidden * narrow
        return self.layers * (attention + n_matrices * self.hidden * self.intermediate)

    def flops(self, lengths: Sequence[int]) -> float:
        """Returns the operations that rows of these tokens need, those on padding left out.

        Two for each weight and token; attention multiplies queries with keys and scores with
        values, of which a model that looks back alone needs half.

        Source: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, section 2.1.
        """
        pairs = sum(length**2 for length in lengths) * (1.0 if self.family == "bert" else 0.5)
        attention = 4.0 * self.layers * self.heads * self.head_dim * pairs
        return 2.0 * self.linear_parameters() * sum(lengths) + attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Texts of known lengths.

    Attributes:
        lengths: tokens of each text, special ones counted.
        sample: positions of the rows that are compared with float32.
    """

    name: str
    texts: list[str]
    lengths: list[int]
    sample: list[int]


MODELS = {
    "minilm": Sizes(
        family="bert",
        layers=6,
        hidden=384,
        heads=12,
        kv_heads=12,
        head_dim=32,
        intermediate=1536,
        vocabulary=30522,
    ),
    "bert-base": Sizes(
        family="bert",
        layers=12,
        hidden=768,
        heads=12,
        kv_heads=12,
        head_dim=64,
        intermediate=3072,
        vocabulary=30522,
    ),
    "qwen3-0.6b": Sizes(
        family="qwen3",
        layers=28,
        hidden=1024,
        heads=16,
        kv_heads=8,
        head_dim=128,
        intermediate=3072,
        vocabulary=151669,
    ),
}
"""Of all-MiniLM-L6-v2, BERT base and Qwen3-Embedding-0.6B.

Source: `config.json` of sentence-transformers/all-MiniLM-L6-v2, google-bert/bert-base-uncased and
Qwen/Qwen3-Embedding-0.6B on https://huggingface.co
"""


def tiny(sizes: Sizes) -> Sizes:
    """Returns a model of the same family that a CPU runs in no time."""
    return replace(
        sizes,
        layers=2,
        hidden=64,
        heads=4,
        kv_heads=4 if sizes.family == "bert" else 2,
        head_dim=16,
        intermediate=128,
        vocabulary=PIECES,
    )


def build(sizes: Sizes, folder: Path, *, device: str = "cpu", dtype: str = "bfloat16") -> Path:
    """Builds a model in `folder` unless it is there, and returns the folder.

    Args:
        sizes: how large it is.
        folder: where; its parents are made.
        device: where the weights are drawn; a GPU is faster.
        dtype: of the stored weights, so that half precision and float32 start from the same.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from chatspace.hf_embed.loading import quiet_libraries

    if (folder / _COMPLETE).is_file():
        return folder
    quiet_libraries()
    inner = folder / "transformers"
    _tokenizer(sizes).save_pretrained(inner)
    _random_model(sizes, device, dtype).save_pretrained(inner)
    transformer = Transformer(str(inner), model_kwargs={"dtype": dtype})
    mode = "mean" if sizes.family == "bert" else "lasttoken"
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode=mode)
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    model.save(str(folder), create_model_card=False)
    for path in inner.iterdir():
        path.unlink()
    inner.rmdir()
    return folder


def corpora(model: Path, n_tokens: int) -> list[Corpus]:
    """Returns rows of about `n_tokens` tokens each: short ones, long ones, and a heavy tail.

    Args:
        model: folder of the model whose tokens are counted.
        n_tokens: special ones counted.
    """
    shapes = {
        "50": [50] * max(16, n_tokens // 50),
        "512": [LIMIT] * max(4, n_tokens // LIMIT),
        "heavy tail": heavy_tail(max(16, n_tokens // MEAN_TAIL)),
    }
    return [_corpus(shape, lengths, model) for shape, lengths in shapes.items()]


def heavy_tail(n_rows: int) -> list[int]:
    """Returns lognormal lengths of median 80, cut at the limit, the same each time."""
    normal = random.Random(0)
    drawn = (round(normal.lognormvariate(math.log(80), 0.8)) for _ in range(n_rows))
    return [min(max(length, 4), LIMIT) for length in drawn]


def _corpus(name: str, lengths: list[int], model: Path) -> Corpus:
    sample = random.Random(name).sample(range(len(lengths)), min(N_SAMPLE, len(lengths)))
    texts = exact(lengths, count=token_count(model), seed=name)
    return Corpus(name=name, texts=texts, lengths=lengths, sample=sample)


def _tokenizer(sizes: Sizes) -> Any:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = _word_pieces() if sizes.family == "bert" else _byte_pairs()
    single = "[CLS] $A [SEP]" if sizes.family == "bert" else "$A [SEP]"
    backend.post_processor = processors.TemplateProcessing(
        single=single,
        special_tokens=[(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=sizes.positions,
        padding_side="right" if sizes.family == "bert" else "left",
        pad_token="[PAD]",
        unk_token="[UNK]",
    )


def _word_pieces() -> Any:
    """Returns a tokenizer that reads as BERT does; its trainer breaks ties at random."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordPiece
    from tokenizers.trainers import WordPieceTrainer

    backend = Tokenizer(WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = WordPieceTrainer(
        vocab_size=PIECES, special_tokens=list(SPECIALS), show_progress=False
    )
    backend.train_from_iterator(paragraphs(), trainer)
    return backend


def _byte_pairs() -> Any:
    """Returns a tokenizer that reads as Qwen does, but for a space before the first word."""
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer

    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(
        vocab_size=PIECES,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(paragraphs(), trainer)
    return backend


def _random_model(sizes: Sizes, device: str, dtype: str) -> Any:
    import torch
    from transformers import BertConfig, BertModel, Qwen3Config, Qwen3Model

    options: dict[str, Any] = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "initializer_range": sizes.gain / sizes.hidden**0.5,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    with torch.device(device):
        if sizes.family == "bert":
            model: Any = BertModel(BertConfig(**options))
        else:
            shape = {"num_key_value_heads": sizes.kv_heads, "head_dim": sizes.head_dim}
            model = Qwen3Model(Qwen3Config(**options, **shape))
    return model.to(dtype=getattr(torch, dtype))


if __name__ == "__main__":
    print(build(MODELS[sys.argv[1]], Path(sys.argv[2])))
