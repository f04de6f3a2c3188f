"""Errors of a user, as one tree. Anything else that is raised is our bug.

LightstrideError             one line for the user; the command line prints it and exits with 2
├── ConfigError              a flag or field has a value that is not allowed
│   └── BudgetError          no plan can have this size under these floors and multiples
├── ModelError               the model cannot be read, or is not what it says
│   └── UnknownFamilyError   no adapter for this model type
├── DataError                a text or prompt source is missing, unreadable, too small, or overlaps
├── NetworkError             a hub id was given and there is no network
├── OutputError              the output cannot be written: not empty, not writable, disk full
├── WorkError                a work folder or supernet is damaged, or belongs to another run
└── ExportError              the target engine cannot run this model

Each message names the value given and the values allowed, in one line.
"""


class LightstrideError(Exception):
    """A mistake or a misfortune of the user's; its text is the whole message."""


class ConfigError(LightstrideError):
    """A flag or field has a value that is not allowed."""


class BudgetError(ConfigError):
    """No plan can have the wanted size under the floors and multiples in force."""


class ModelError(LightstrideError):
    """The model cannot be read, or is not what it says it is."""


class UnknownFamilyError(ModelError):
    """There is no adapter for this model type."""


class DataError(LightstrideError):
    """A text or prompt source is missing, unreadable, too small, or overlaps another."""


class NetworkError(LightstrideError):
    """A hub id was given and the hub cannot be reached."""


class OutputError(LightstrideError):
    """The output cannot be written: the folder is not empty, not writable, or the disk is full."""


class WorkError(LightstrideError):
    """A work folder or supernet is damaged, of another version, or of another model."""


class ExportError(LightstrideError):
    """The target engine cannot run this model."""


def is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust gave up; the class has no place to be imported from."""
    return type(error).__name__ == "PanicException"
