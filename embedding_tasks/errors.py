"""What can go wrong, in two branches, so that a retry policy is one line.

EmbedlineError
├── TerminalError          trying again gives the same
│   ├── ConfigError        a use-case file or a setting
│   ├── SourceError        the source lacks what the use case names
│   ├── ModelError         the model cannot make what is asked
│   ├── StoreError         the store is not as this version needs it
│   ├── SearchError        a question the store cannot answer
│   ├── InputError         one record; charged to that record alone
│   └── ThresholdError     a run left more undone than the use case allows
└── TransientError         the same call may succeed later
    ├── DatabaseAway       source or store cannot be reached
    ├── DeviceError        out of memory, or the accelerator is gone
    └── Stopped            somebody asked for a stop; says nothing of what was in hand
"""

from __future__ import annotations


class EmbedlineError(Exception):
    """Base of every error this package raises on purpose."""


class TerminalError(EmbedlineError):
    pass


class ConfigError(TerminalError):
    pass


class SourceError(TerminalError):
    pass


class ModelError(TerminalError):
    pass


class StoreError(TerminalError):
    pass


class SearchError(TerminalError):
    pass


class InputError(TerminalError):
    pass


class ThresholdError(TerminalError):
    pass


class TransientError(EmbedlineError):
    pass


class DatabaseAway(TransientError):
    pass


class DeviceError(TransientError):
    pass


class Stopped(TransientError):
    pass


def valid_choices(got: object, choices: list[str]) -> str:
    """`'textt': did you mean 'text'? valid: id, text`, for the end of a message."""
    from difflib import get_close_matches

    close = get_close_matches(str(got), choices, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{got!r}: {hint}valid: {', '.join(choices)}"
