"""Words on a map: cut where they are too long, and such as a font engine takes."""

from __future__ import annotations

from collections.abc import Callable


def cut_middle(text: str, n_chars: int) -> str:
    """Returns a text of at most `n_chars`, its middle left out; beginnings are often alike."""
    if len(text) <= n_chars:
        return text
    n_tail = (n_chars - 1) // 2
    head = text[: n_chars - 1 - n_tail].rstrip()
    return f"{head}…{text[len(text) - n_tail :].lstrip()}"


def fitting(text: str, fits: Callable[[str], bool]) -> str:
    """Returns a text as long as it may be, its middle left out.

    Args:
        text: the whole.
        fits: tells whether a text is narrow enough; a shorter one is not wider.
    """
    if fits(text):
        return text
    least, most = 1, len(text)  # `most` does not fit
    while most - least > 1:
        middle = (least + most) // 2
        if fits(cut_middle(text, middle)):
            least = middle
        else:
            most = middle
    return cut_middle(text, least)


def cut(text: str, n_chars: int) -> str:
    """Returns a text of at most `n_chars`, its end left out."""
    return text if len(text) <= n_chars else text[: n_chars - 1] + "…"


def plain(text: str) -> str:
    """Returns one line that a font engine takes: no control characters, no half surrogates."""
    return "".join(char if char.isprintable() else "\N{MIDDLE DOT}" for char in text)
