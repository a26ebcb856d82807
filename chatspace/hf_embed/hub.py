"""Which commit of a hub model is meant: asked of the local cache first, then once of the hub."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatspace.data.fetch import fetched_snapshot
from chatspace.errors import ModelError

TIMEOUT_S = 5.0
_HARD_TIMEOUT_S = 8.0  # name servers, and several addresses of one name, know no timeout
_ORGANIZATION = "sentence-transformers"  # where that library looks for names without one
_LOUD = ("huggingface_hub", "httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "filelock")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubAnswer:
    """What the hub says of a model.

    Attributes:
        reached: whether it answered at all.
        commit: the commit that the revision names now, if it said so.
    """

    reached: bool
    commit: str | None = None


def quiet() -> None:
    """Silences the libraries between this one and the hub; what matters comes as an error."""
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.ERROR)


def staged_snapshot(name: str, revision: str | None, cache: Path) -> Path | None:
    """Returns the folder of a model that `chatspace stage` put into a hub cache, whole."""
    snapshots = (fetched_snapshot(candidate, revision, cache) for candidate in candidates(name))
    return next((snapshot for snapshot in snapshots if snapshot), None)


def cached_snapshot(name: str, revision: str | None, hf_home: str | None = None) -> Path | None:
    """Returns the folder of a model in the local cache, None where it has none of that revision.

    Args:
        name: name on the hub.
        revision: branch, tag or commit; None is the main branch.
        hf_home: home of the cache [$HF_HOME].

    Raises:
        ModelError: nothing on the hub can have such a name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    quiet()
    own = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    cache = Path(hf_home) / "hub" if hf_home and not own else own
    for candidate in candidates(name):
        for file in ("modules.json", "config.json"):
            try:
                found = try_to_load_from_cache(candidate, file, cache_dir=cache, revision=revision)
            except HFValidationError as error:
                raise _no_such_model(name, revision, error) from error
            if isinstance(found, str):
                return Path(found).parent
    return None


def ask_hub(name: str, revision: str | None) -> HubAnswer:
    """Asks the hub once, for a few seconds at most; not at all if HF_HUB_OFFLINE is set.

    Raises:
        ModelError: the hub says that there is no such model or revision.
    """
    from huggingface_hub import constants

    quiet()
    if constants.is_offline_mode():
        return HubAnswer(reached=False)
    refusals = []
    for candidate in candidates(name):
        answer = _ask_in_time(candidate, revision)
        if isinstance(answer, HubAnswer):
            return answer
        refusals.append(answer)
    raise _no_such_model(name, revision, refusals[-1])


def _no_such_model(name: str, revision: str | None, error: Exception) -> ModelError:
    place = f"model.name={name}" + (f", model.revision={revision}" if revision else "")
    return ModelError(
        f"No such model: {place}; {_reason(error)}. Check name and revision, write a local "
        f"folder as /... or ./..., or log in with `hf auth login` if the model is private."
    )


def candidates(name: str) -> tuple[str, ...]:
    """Returns the names that a model may have on the hub, in the order in which they are tried."""
    return (name,) if "/" in name else (f"{_ORGANIZATION}/{name}", name)


def _ask_in_time(name: str, revision: str | None) -> HubAnswer | Exception:
    answers: list[HubAnswer | Exception] = []
    asking = threading.Thread(
        target=lambda: answers.append(_ask(name, revision)), name="hub", daemon=True
    )
    asking.start()
    asking.join(_HARD_TIMEOUT_S)
    return answers[0] if answers else HubAnswer(reached=False)


def _ask(name: str, revision: str | None) -> HubAnswer | Exception:
    """Returns the answer, or the error that says there is no such thing."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info: Any = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        return error
    except HfHubHTTPError:  # too many requests, or the hub is unwell: it may answer later
        return HubAnswer(reached=True)
    except Exception:  # of the network, whatever it is: to go on without an answer is right
        return HubAnswer(reached=False)
    return HubAnswer(reached=True, commit=info.sha)


def _reason(error: Exception) -> str:
    words = {
        "RepositoryNotFoundError": "the hub has no model of that name that you may read",
        "GatedRepoError": "the hub has it for people with access only",
        "RevisionNotFoundError": "the hub has no such revision of it",
    }
    return words.get(type(error).__name__) or " ".join(str(error).split())[:200].rstrip(". ")
