"""Other engines' virtual environments, made once from pinned requirements, and exported models."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
_INSTALL_S = 3600
_EXPORT_S = 600
_UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""What some engines pull in and none needs here; a build for GPUs breaks the import of theirs."""


class NotInstalledError(Exception):
    """An environment or an exported model could not be made; the reason is one line."""


def default_folder() -> Path:
    """Returns the place for environments in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "chatspace" / "benchmarks"


@dataclass(slots=True, kw_only=True)
class Environments:
    """Environments and exported models in one folder, one subfolder for each environment.

    Attributes:
        failures: why an environment could not be made, so that it is not tried for each engine.
    """

    folder: Path
    failures: dict[str, str] = field(default_factory=dict)

    def python(self, name: str) -> Path:
        """Returns the Python of an environment, made now if it is not there or out of date.

        Raises:
            NotInstalledError: the packages cannot be installed here.
        """
        if name in self.failures:
            raise NotInstalledError(self.failures[name])
        requirements = HERE / "requirements" / f"{name}.txt"
        wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
        target = self.folder / name
        mark = target / "requirements.sha256"
        if not mark.is_file() or mark.read_text(encoding="utf-8") != wanted:
            print(f"making the environment {target}", file=sys.stderr)
            try:
                _remove(target)
                _install(requirements, target)
            except NotInstalledError as error:
                self.failures[name] = str(error)
                raise
            mark.write_text(wanted, encoding="utf-8")
        return target / "bin" / "python"

    def exported_model(self, backend: str, model: Path) -> Path:
        """Returns the model in the files of `onnx` or `openvino`, exported once per environment.

        Raises:
            NotInstalledError: the environment cannot be made, or the export fails.
        """
        python = self.python(backend)
        target, scratch = (self.folder / backend / name for name in ("model", "model.partial"))
        if not target.is_dir():
            print(f"exporting the model to {target}", file=sys.stderr)
            shutil.rmtree(scratch, ignore_errors=True)
            script = HERE / "engines" / "export.py"
            command = [str(python), str(script), str(model), backend, str(scratch)]
            _run(command, dict(os.environ, HF_HUB_OFFLINE="1"), timeout_s=_EXPORT_S)
            scratch.rename(target)
        return target


def _remove(target: Path) -> None:
    if not target.exists():
        return
    if not (target / "pyvenv.cfg").is_file():  # a folder of the user's own
        raise NotInstalledError(f"{target} is no virtual environment; name another folder")
    shutil.rmtree(target)


def _install(requirements: Path, target: Path) -> None:
    python = str(target / "bin" / "python")
    uv, variables = shutil.which("uv"), dict(os.environ)
    if uv is not None:
        if "PIP_FIND_LINKS" in variables:  # uv does not read pip's variable
            variables.setdefault("UV_FIND_LINKS", variables["PIP_FIND_LINKS"])
        install = [uv, "pip", "install", "--quiet", "--python", python]
        remove = [uv, "pip", "uninstall", "--quiet", "--python", python]
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(target)], variables)
    else:
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        install, remove = [*pip, "install", "--quiet"], [*pip, "uninstall", "--quiet", "--yes"]
        _run([sys.executable, "-m", "venv", str(target)], variables)
    _run([*install, "-r", str(requirements)], variables)
    _run([*remove, *_UNWANTED], variables)


def _run(command: list[str], variables: dict[str, str], *, timeout_s: int = _INSTALL_S) -> None:
    try:
        subprocess.run(
            command, env=variables, capture_output=True, text=True, timeout=timeout_s, check=True
        )
    except subprocess.CalledProcessError as error:
        raise NotInstalledError(last_error(error.stderr)) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(str(error)) from error


def last_error(text: str) -> str:
    """Returns the line of a program's output that says best why it failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if pip := [line for line in lines if line.startswith("ERROR:")]:
        return pip[0][:200]  # the others give advice
    telling = [line for line in lines if _is_exception(line)]
    return (telling or lines or ["no reason given"])[-1][:200]


def _is_exception(line: str) -> bool:
    name = line.split(":", 1)[0]
    return name.endswith(("Error", "Exception")) and " " not in name
