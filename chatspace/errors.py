"""Every error that chatspace raises on purpose, and the exit code that it becomes.

    ChatspaceError               1   never raised itself
    ├── UserError                2   the user's input is wrong; the message is one line
    │   ├── SpecError                a run spec, a profile, a flag
    │   ├── InputError               the dataset: files, columns, rows, ids
    │   ├── ModelError               the model: folder, name, limit
    │   │   └── RowTooLargeError     a single row does not fit into the device's memory
    │   └── OutputError              the workspace: not writable, full, owned by another plan
    ├── IncompleteError          3   gather or verify found gaps, overlaps or damage
    ├── UnfitEnvironmentError    4   the machine or the cluster is not fit for the run
    └── InterruptedRun          75   stopped by a signal with work left; run it again

A message reads `<what>: <file:line or field>=<value>; <limit or known names>. <next step>.`
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; batch scripts act on them."""

    DONE = 0
    BUG = 1
    USER_INPUT = 2
    INCOMPLETE = 3
    ENVIRONMENT = 4
    INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class ChatspaceError(Exception):
    """Base of the tree: an error that the command line prints without a traceback."""

    exit_code: ExitCode = ExitCode.BUG


class UserError(ChatspaceError):
    """The user's input is wrong."""

    exit_code = ExitCode.USER_INPUT


class SpecError(UserError):
    """A run spec, a cluster profile or a flag is wrong."""


class InputError(UserError):
    """The dataset cannot be read as the spec says."""


class ModelError(UserError):
    """The model cannot be loaded or used as the spec says."""


class RowTooLargeError(ModelError):
    """A single row does not fit into the memory of the device."""


class OutputError(UserError):
    """The output folder cannot take the run's files."""


class IncompleteError(ChatspaceError):
    """Shards are missing, damaged or counted twice."""

    exit_code = ExitCode.INCOMPLETE


class UnfitEnvironmentError(ChatspaceError):
    """The machine or the cluster lacks something that the run needs."""

    exit_code = ExitCode.ENVIRONMENT


class InterruptedRun(ChatspaceError):
    """A signal stopped the work before it was complete; running again resumes it."""

    exit_code = ExitCode.INTERRUPTED
