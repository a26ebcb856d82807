"""Which keys about chunks go together, for every kind that cuts long rows."""

from __future__ import annotations


def check_chunks(
    *,
    long_text: str | None,
    max_tokens: int | None,
    chunk_tokens: int | None,
    overlap_tokens: int | None,
    document_vector: bool | None,
) -> None:
    """Returns if these keys of a model section go together.

    Raises:
        ValueError: they do not; the message names them.
    """
    chunking = {
        "chunk_tokens": chunk_tokens,
        "overlap_tokens": overlap_tokens,
        "document_vector": document_vector,
    }
    given = [name for name, value in chunking.items() if value]
    if given and long_text != "chunk":
        raise ValueError(
            f"{', '.join(given)}: only where rows are cut into chunks; add long_text: chunk, "
            "or leave it out"
        )
    if chunk_tokens and max_tokens and chunk_tokens > max_tokens:
        raise ValueError(
            f"chunk_tokens={chunk_tokens} is above max_tokens={max_tokens}; "
            "lower it, or set max_tokens to what the model really takes"
        )
    most = chunk_tokens or max_tokens
    if overlap_tokens and most and 2 * overlap_tokens > most:
        raise ValueError(
            f"overlap_tokens={overlap_tokens} is more than half of the {most} tokens of a "
            f"chunk; {most // 2} is the most"
        )
