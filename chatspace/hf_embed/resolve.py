"""What a plan says of an encoder, found without loading it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from chatspace.atomic import read_json_object
from chatspace.errors import ModelError
from chatspace.hf_embed.hub import ask_hub, cached_snapshot, staged_snapshot
from chatspace.hf_embed.room import refuse_impossible_limit
from chatspace.hf_embed.spec import EmbedSpec
from chatspace.layout import Layout, find_workspace, path_component
from chatspace.spec.cluster import resolve_cluster

HASH_WHOLE_BYTES = 64 * 2**20
HASH_EDGE_BYTES = 2**20


def resolve_model(spec: EmbedSpec) -> dict[str, Any]:
    """Returns name, label, local folder, fingerprint and, where it can be read, the vector length.

    A name is a local folder if it begins with `/`, `.`, `~` or `$`, has more than one `/`, or
    exists as a folder; anything else is a name on the hub.

    A hub model also has `revision`: the commit that all tasks load. It is that of the local cache,
    else the hub's; where neither knows it, what the spec says (None: whatever the tasks find). It
    is part of the fingerprint, so that planning before and after a branch moved gives two runs.
    Where it was staged, `path` is its folder, which is no part of the fingerprint.

    Raises:
        ModelError: a local folder that is not there or holds no model, a name or revision that the
            hub does not know, vectors shorter than what is to be kept of them, or a limit in tokens
            that the model's files rule out.
    """
    found = _resolved(spec)
    refuse_too_long_cut(spec.output.truncate_dim, found.get("embedding_dim"))
    return found


def refuse_too_long_cut(wanted: int | None, dim: int | None) -> None:
    """Refuses to keep more numbers of a vector than there are; either may be unknown.

    Raises:
        ModelError: `wanted` is above `dim`.
    """
    if wanted is not None and dim is not None and wanted > dim:
        raise ModelError(
            f"Vectors too short: output.truncate_dim={wanted}; the model gives {dim} numbers. "
            f"Set output.truncate_dim to {dim} or less, or leave it out."
        )


def _resolved(spec: EmbedSpec) -> dict[str, Any]:
    name = spec.model.name
    folder = local_folder(name)
    if folder is None:
        return _hub_model(spec)
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        state = "holds no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(
            f"Unknown model folder: model.name={name}; {folder} {state}. "
            f"Name a folder with a saved model, or a model on the hub such as "
            f"sentence-transformers/all-MiniLM-L6-v2."
        )
    refuse_impossible_limit(spec.model, folder)
    return {
        "name": name,
        "label": path_component((folder.resolve() if folder.name == ".." else folder).name),
        "path": str(folder),
        "fingerprint": {"files": fingerprint_files(folder)},
        "embedding_dim": embedding_dim(folder),
    }


def _hub_model(spec: EmbedSpec) -> dict[str, Any]:
    name, asked, cluster = spec.model.name, spec.model.revision, resolve_cluster(spec)
    workspace = find_workspace(cluster.workspace if spec.workspace else None, cluster.workspace)
    staged = staged_snapshot(name, asked, Layout(workspace).hub_cache(cluster.hf_home))
    # The cache that tasks will have, which may be another than that of the person who plans.
    snapshot = staged or cached_snapshot(name, asked, cluster.hf_home)
    if snapshot:
        refuse_impossible_limit(spec.model, snapshot)
    commit = snapshot.name if snapshot else ask_hub(name, asked).commit
    revision = commit or asked
    return {
        "name": name,
        "label": path_component(name),
        "path": str(staged) if staged else None,
        "revision": revision,
        "fingerprint": {"hub": name, "revision": revision},
        **({"embedding_dim": embedding_dim(snapshot), "cached": True} if snapshot else {}),
    }


def local_folder(name: str) -> Path | None:
    """Returns the folder that a model name means, None if it is a name on the hub."""
    path = Path(os.path.expandvars(name)).expanduser()
    if name[0] in "/.~$" or name.count("/") > 1 or path.is_dir():
        return path.absolute()
    return None


def fingerprint_files(folder: Path) -> dict[str, str]:
    """Returns a digest of each file that a model is loaded from, by relative name.

    Weights above 64 MiB are told apart by size, first and last MiB, so that planning stays fast; a
    model that was changed only in the middle of its weights would pass for the same.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != "." and _matters(p))
    return {str(path.relative_to(folder)): _digest(path) for path in files}


def embedding_dim(folder: Path) -> int | None:
    """Returns the length of the vectors as the model's files say it, None where they do not."""
    dims = [
        config.get("out_features")
        for path in sorted(folder.glob("*_Dense/config.json"))
        if (config := read_json_object(path))
    ]
    hidden = read_json_object(folder / "config.json").get("hidden_size")
    dim = dims[-1] if dims else hidden
    return dim if isinstance(dim, int) else None


def _matters(path: Path) -> bool:
    return path.suffix in {".json", ".txt", ".model", ".safetensors", ".bin", ".py", ".jinja"}


def _digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= HASH_WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(file.read(HASH_EDGE_BYTES))
        file.seek(-HASH_EDGE_BYTES, os.SEEK_END)
        digest.update(file.read())
    return f"{size}:{digest.hexdigest()}"
