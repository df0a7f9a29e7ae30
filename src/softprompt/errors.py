"""The errors that softprompt raises for bad input. Each message is one line that says what is wrong and what to do.

Owns the error types; knows nothing about what raises them.
"""

from __future__ import annotations


class SoftPromptError(ValueError):
    """Bad input. The command line prints it as `error: ...` and exits 1."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class WrongBaseError(SoftPromptError):
    """A prompt met a base model that it was not made for."""


class UnknownPromptError(SoftPromptError):
    """The library has no prompt of that name, or no such version of it."""


class EndedElsewhereError(SoftPromptError):
    """Of several processes that train together another one says what went wrong: this one ends without a word."""
