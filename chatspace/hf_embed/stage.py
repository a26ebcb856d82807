"""Staging an encoder: the files it is loaded from, and the repositories that they name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from chatspace.data.fetch import (
    CODE,
    COMMIT,
    WEIGHTS,
    Fetched,
    HubFile,
    NotOnHub,
    Report,
    fetch_repository,
    fetched_commit,
)
from chatspace.errors import ModelError, UnfitEnvironmentError
from chatspace.hf_embed.hub import ask_hub, candidates, quiet
from chatspace.hf_embed.resolve import local_folder, resolve_model
from chatspace.hf_embed.room import refuse_impossible_limit
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.wording import counted

# Weights of other frameworks and runtimes, and pictures: no encoder here is loaded from them.
_UNUSED = re.compile(
    r"\.(onnx|onnx_data|gguf|ggml|h5|msgpack|ot|tflite|pb|npz|mlmodel|llamafile|tar|zip|gz|pdf|mp4"
    r"|png|jpe?g|gif|webp|svg)$",
    re.IGNORECASE,
)
_UNUSED_FOLDERS = frozenset(
    ["onnx", "openvino", "coreml", "original", "gguf", "tflite", "runs", ".git", "flax"]
)
_PICKLED = frozenset([".bin", ".pt", ".pth", ".ckpt"])


_CONFIGURATIONS = frozenset(["config.json", "modules.json", "adapter_config.json"])


def stage_model(spec: EmbedSpec, cache: Path, report: Report) -> list[Fetched]:
    """Fetches the model of a spec at the commit that its plan names; a local folder needs nothing.

    Args:
        spec: what the user wrote.
        cache: hub cache that tasks will read.
        report: told what is done, the bytes done and the bytes in all, every few seconds.

    Returns:
        The model's repository, then those that its configuration names: code, a base model.

    Raises:
        ModelError: there is no such model, a file's checksum is never right, or the model cannot
            have the spec's limit in tokens.
        UnfitEnvironmentError: something is missing and the hub is out of reach.
        OutputError: the cache cannot be written, or the disk is too small.
    """
    quiet()
    name, revision = spec.model.name, spec.model.revision
    staged = _staged_commit(name, revision, cache)
    commit = staged or resolve_model(spec).get("revision")
    if local_folder(name) is not None:
        return []
    if commit is None or not COMMIT.fullmatch(commit):
        raise _out_of_reach(f"model.name={name}")
    # Asked before anything is fetched: the library would try for half a minute.
    if staged is None and not ask_hub(name, commit).reached:
        raise _out_of_reach(f"model.name={name}")
    ref = revision or "main"
    first = _fetch(name, commit, cache, report=report, ref=ref)
    refuse_impossible_limit(spec.model, first.folder)
    return [first, *_named_by(first.folder, spec.model.trust_remote_code, cache, report)]


def needed_files(files: Sequence[HubFile]) -> list[HubFile]:
    """Returns those of a repository's files that an encoder is loaded from.

    Weights in pickles are left out where the same folder has safetensors.
    """
    safe = {_folder(file) for file in files if file.name.endswith(".safetensors")}
    return [
        file
        for file in files
        if _is_loaded(PurePosixPath(file.name))
        and not (PurePosixPath(file.name).suffix in _PICKLED and _folder(file) in safe)
    ]


def _is_loaded(path: PurePosixPath) -> bool:
    in_use = not _UNUSED.search(path.name) and not _UNUSED_FOLDERS & set(path.parts[:-1])
    # The checkpoint's form at its makers, beside the one that the libraries read.
    return in_use and not path.name.startswith((".git", "consolidated."))


def _folder(file: HubFile) -> PurePosixPath:
    return PurePosixPath(file.name).parent


def _model_files(files: Sequence[HubFile]) -> list[HubFile]:
    needed = needed_files(files)
    if not {file.name for file in needed} & _CONFIGURATIONS:
        raise ModelError(
            f"Nothing to load: the repository has {counted(len(files), 'file')}, among them no "
            f"{' or '.join(sorted(_CONFIGURATIONS))}. Name a model that transformers can load."
        )
    return needed


def _code_files(files: Sequence[HubFile]) -> list[HubFile]:
    return [file for file in files if file.name.endswith((".py", ".json"))]


_PARTS = {WEIGHTS: _model_files, CODE: _code_files}


def _fetch(
    name: str, commit: str, cache: Path, *, report: Report, ref: str = "main", part: str = WEIGHTS
) -> Fetched:
    """Fetches a part under the first of its possible names that was staged or is known."""
    names = sorted(candidates(name), key=lambda n: fetched_commit(n, commit, cache, part) is None)
    for candidate in names:
        try:
            return fetch_repository(
                candidate, commit, cache, choose=_PARTS[part], report=report, ref=ref, part=part
            )
        except NotOnHub:
            if candidate == names[-1]:
                raise
    raise AssertionError("a name has at least one candidate")


def _staged_commit(name: str, revision: str | None, cache: Path, part: str = WEIGHTS) -> str | None:
    commits = (fetched_commit(candidate, revision, cache, part) for candidate in candidates(name))
    return next((commit for commit in commits if commit), None)


def _out_of_reach(what: str) -> UnfitEnvironmentError:
    return UnfitEnvironmentError(
        f"Hub out of reach: {what}; it was not staged before. Run `chatspace stage` where there "
        f"is internet, such as the login node."
    )


def _named_by(
    snapshot: Path, trust_remote_code: bool, cache: Path, report: Report
) -> list[Fetched]:
    """Fetches what the model is loaded with from elsewhere: its base model, and code of others."""
    base = _read(snapshot / "adapter_config.json").get("base_model_name_or_path")
    wanted = [(base, WEIGHTS)] if isinstance(base, str) and local_folder(base) is None else []
    if trust_remote_code:
        wanted += [(name, CODE) for name in code_repositories(snapshot)]
    fetched = []
    for name, part in wanted:
        commit = _staged_commit(name, None, cache, part) or ask_hub(name, None).commit
        if commit is None:
            raise _out_of_reach(f"{name}, which the model names")
        fetched.append(_fetch(name, commit, cache, report=report, part=part))
    return fetched


def code_repositories(snapshot: Path) -> list[str]:
    """Returns the repositories whose code a model's configuration names, `org/name--file.Class`."""
    names: dict[str, None] = {}
    for path in sorted(snapshot.glob("*.json")):
        classes = _read(path).get("auto_map")
        for value in classes.values() if isinstance(classes, dict) else ():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and "--" in text:
                    names[text.split("--")[0]] = None
    return list(names)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
