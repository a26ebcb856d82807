"""Passwords and signatures in URLs, which plans, records and logs would show."""

from __future__ import annotations

import re

from chatspace.errors import SpecError
from chatspace.spec.document import shown

ADVICE = "give credentials as the environment variables of its library instead"
# The user is looked ahead at: in `zip://a.csv::https://me@host` another URL begins within.
_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(?=([^/?#]*))")
_QUERY_NAME = re.compile(
    r"(?i)[?&;#](?:"
    r"[^=&;]*(?:signature|token|secret|password|passwd|pwd|key|keyid|sig|credentials?|auth"
    r"|authorization|jwt|bearer)"
    r"|(?:[^=&;]*[-_.])?(?:pass|passphrase|sas)|code)="
)
# Tokens that are known by how they begin, wherever they stand.
# Source: https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns
TOKENS = {
    "a Hugging Face token": re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}"),
    # In words, such as sk-learn, digits and capitals do not meet.
    "an API key": re.compile(
        r"(?<![A-Za-z0-9])(?:sk-(?=[\w-]*[0-9])(?=[\w-]*[A-Z])[\w-]{20,}|AIza[\w-]{35})"
    ),
    "an AWS key": re.compile(r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a GitHub token": re.compile(
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"
    ),
    "a GitLab token": re.compile(r"(?<![A-Za-z0-9])glpat-[\w-]{20,}"),
    "a Slack token": re.compile(r"(?<![A-Za-z0-9])xox[abprs]-[A-Za-z0-9-]{10,}"),
}
_WEB_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\"]*")


def holds_secret(url: str) -> bool:
    """Whether a URL, or one that is chained to it by `::`, holds a password, signature or token.

    At a web server every user counts as one: tokens are given so. Not covered: a secret that has
    no name, or stands in the path, and does not look like one of the well-known tokens.
    """
    if holds_token(url):
        return True
    for scheme, authority in _AUTHORITY.findall(url):
        user, at, _ = authority.rpartition("@")
        if at and (":" in user or scheme.lower() in ("http", "https")):
            return True
    return "://" in url and _QUERY_NAME.search(url) is not None


def holds_token(text: str) -> bool:
    """Whether a text holds what looks like a well-known sort of token."""
    return any(pattern.search(text) for pattern in TOKENS.values())


def refuse_expanded_secret(expanded: str, written: str, where: str) -> None:
    """Refuses a path whose variables hold a secret; what they hold is not shown.

    Args:
        expanded: the path with its variables replaced.
        written: the path as a person wrote it.
        where: the key that holds it.

    Raises:
        SpecError: the expanded path holds a password, a signature or a token.
    """
    if holds_secret(expanded):
        raise SpecError(
            f"Secret in a path: {where}={shown(written)}; its variables hold a password, a "
            f"signature or a token, which plans and logs would show. Leave it out, and {ADVICE}."
        )


def without_query(text: str) -> str:
    """Returns a text whose web URLs end before what they ask for, as errors name them."""
    return _WEB_QUERY.sub(r"\1?...", text)
