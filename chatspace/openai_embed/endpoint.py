"""Where requests go, with which key, and how neither key nor password gets into a message."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from chatspace.errors import SpecError, UnfitEnvironmentError
from chatspace.openai_embed.spec import ModelSection, RequestsSection

OPENAI_URL = "https://api.openai.com/v1"
DEFAULT_TIMEOUT_S = 120.0
_URL, _AZURE_URL = "OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT"
_KEYLESS = "none"  # what is sent to a server that wants no key: the client insists on one
_LOOKS_LIKE_KEY = re.compile(r"\bsk-[A-Za-z0-9_*-]{8,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a model is served; no secret stands in it.

    Attributes:
        provider: `openai` (and whatever is compatible) or `azure`.
        base_url: address, without credentials.
        api_version: of Azure, None elsewhere.
        timeout_s: seconds after which a request counts as lost.
    """

    provider: str
    base_url: str
    api_version: str | None
    timeout_s: float

    @property
    def key_names(self) -> tuple[str, ...]:
        """Variables that may hold the key, the first that is set counts."""
        azure = ("AZURE_OPENAI_API_KEY",) if self.provider == "azure" else ()
        return (*azure, "OPENAI_API_KEY")

    @property
    def needs_key(self) -> bool:
        """Whether a request without a key is bound to be refused."""
        return self.provider == "azure" or urlsplit(self.base_url).hostname == "api.openai.com"


def find_endpoint(
    model: ModelSection, requests: RequestsSection, variables: Mapping[str, str]
) -> Endpoint:
    """Returns the endpoint that spec and environment name; the spec goes first.

    Raises:
        SpecError: an address has a password in it or is none, Azure's version is missing, or a
            timeout is no number.
    """
    azure_url = variables.get(_AZURE_URL)
    url, where = model.base_url, "model.base_url"
    provider = model.provider
    if provider == "auto":
        plain = url or variables.get(_URL)
        provider = "azure" if azure_url and not plain else "openai"
    if url is None:
        where = _AZURE_URL if provider == "azure" else _URL
        url = variables.get(where) or (None if provider == "azure" else OPENAI_URL)
    version = model.api_version or variables.get("OPENAI_API_VERSION") or None
    if provider == "azure" and requests.mode == "batch":
        raise SpecError(
            "Not possible: requests.mode=batch with Azure; its Batch API is another one. "
            "Set requests.mode: direct."
        )
    if provider == "azure" and (url is None or version is None):
        missing = "OPENAI_API_VERSION (or model.api_version)" if url else where
        raise SpecError(f"Azure is not fully named: {missing} is not set. Set it, or use .env.")
    assert url is not None
    return Endpoint(
        provider=provider,
        base_url=_checked_url(url, where),
        api_version=version if provider == "azure" else None,
        timeout_s=_timeout_s(requests, variables),
    )


def endpoint_now(
    planned: Mapping[str, Any],
    spec: Mapping[str, Any],
    variables: Mapping[str, str],
    base_url: str | None = None,
) -> Endpoint:
    """Returns where a planned run is asked from here and now: its server may have moved.

    What the spec names stays. What it leaves to the environment is what that says now, and where it
    says nothing now, what it said when the run was planned.

    Args:
        planned: what the plan says of the model.
        spec: the spec in the plan.
        variables: the environment of whoever asks.
        base_url: an address that goes before all others, as `--base-url`.

    Raises:
        SpecError: the environment names an endpoint that is none.
    """
    model = ModelSection.model_validate(spec["model"])
    requests = RequestsSection.model_validate(spec["requests"])
    provider = planned["provider"]
    if base_url is not None:
        base_url = _checked_url(base_url, "--base-url")
    elif model.base_url is not None or not _is_named(model, variables):
        base_url = planned["base_url"]
    if base_url is not None:
        model = model.model_copy(update={"base_url": base_url, "provider": provider})
    earlier = {
        "OPENAI_API_VERSION": planned["api_version"] or "",
        "OPENAI_TIMEOUT": str(planned["timeout_s"]),
    }
    is_set = {name: value for name, value in variables.items() if value}
    return find_endpoint(model, requests, {**earlier, **is_set})


def _is_named(model: ModelSection, variables: Mapping[str, str]) -> bool:
    """Returns whether the environment says where a model is that its spec has no address of."""
    names = {"openai": (_URL,), "azure": (_AZURE_URL,)}.get(model.provider, (_URL, _AZURE_URL))
    return any(variables.get(name) for name in names)


def find_key(endpoint: Endpoint, variables: Mapping[str, str]) -> str:
    """Returns the key for an endpoint; it is never written anywhere.

    Raises:
        UnfitEnvironmentError: no key is set, and the endpoint needs one; or it cannot be one.
    """
    for name in endpoint.key_names:
        if value := variables.get(name, "").strip():
            if not (value.isascii() and value.isprintable()) or " " in value:
                raise UnfitEnvironmentError(
                    f"Not a key: {name} holds a blank, a line break, a curly quote or the like; a "
                    "key has letters, digits and plain signs. Copy it again (it is not shown here)."
                )
            return value
    if endpoint.needs_key:
        raise UnfitEnvironmentError(
            f"No key: {endpoint.key_names[0]} is not set, and {endpoint.base_url} needs one. "
            f"`export {endpoint.key_names[0]}=...`, or put it into .env."
        )
    return _KEYLESS


def redacted(text: str, key: str) -> str:
    """Returns a message in one short line without the key, or anything that looks like one."""
    line = " ".join(text.split())
    if key != _KEYLESS:
        line = line.replace(key, "***")
    return _LOOKS_LIKE_KEY.sub("***", line)[:300]


def _checked_url(url: str, where: str) -> str:
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        is_address = False
    if not is_address:
        # Not repeated: what is no address may be a key in the wrong place.
        raise SpecError(
            f"Not an address: {where}; expected one such as http://localhost:8000/v1. Correct it."
        )
    if parts.username or parts.password or parts.query:
        raise SpecError(
            f"Secret in an address: {where}; it would be written into plans. Take user, password "
            "and query out of it, and export OPENAI_API_KEY instead."
        )
    return url.rstrip("/")


def _timeout_s(requests: RequestsSection, variables: Mapping[str, str]) -> float:
    if requests.timeout_s is not None:
        return requests.timeout_s
    text = variables.get("OPENAI_TIMEOUT") or str(DEFAULT_TIMEOUT_S)
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SpecError(
            f"Invalid variable: OPENAI_TIMEOUT={text!r}; expected seconds above 0. Correct it."
        )
    return value
