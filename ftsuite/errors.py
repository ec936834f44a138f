"""The errors that a user can cause or mend; each prints as one line.

```
FtsuiteError
├── ConfigError         a configuration value that cannot work
├── DataError           a data file, row or split that cannot be used
├── StoreError          a stored result that is corrupted or contradicts its key
├── StageError          a stage that ran and could not finish (NaN loss, full disk, fidelity)
├── ComparisonError     a delta between results that are not comparable
├── ScoreError          a score that its metric cannot give
├── BackendUnavailable  a device or service that this machine does not have
└── CellsFailed         some cells of a sweep failed; the others went on
```
"""

from __future__ import annotations

import os
import reprlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

SECRET_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
"""Environment variables whose values never reach a file, a log line or a report."""
SHORTEST_SECRET = 8
"""Characters of a secret variable's value from which on it is looked for."""


class FtsuiteError(Exception):
    """Base of all errors that are reported as one line without a traceback."""


def shorten(text: str, characters: int = 60) -> str:
    """Return `text`, cut where it is longer than a name that a person would write."""
    return text if len(text) <= characters else f"{text[:characters]}…"


class _Short(reprlib.Repr):
    """Values in errors: whole where a person wrote them, cut where a machine or a mistake did."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 300
        self.maxlist = self.maxdict = self.maxtuple = 30
        self.maxlong = 40


class ConfigError(FtsuiteError):
    """A configuration value that cannot work: names field, value and remedy."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        """Build the line `field = value: remedy`."""
        super().__init__(f"{field} = {_Short().repr(value)}: {remedy}")
        self.field, self.value, self.remedy = field, value, remedy

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.remedy)


class DataError(FtsuiteError):
    """A data file, row or split that cannot be used."""


class StoreError(FtsuiteError):
    """A stored result that is corrupted, or whose inputs contradict its key."""


class StageError(FtsuiteError):
    """A stage that ran and could not finish."""


class ComparisonError(FtsuiteError):
    """A delta was asked for between results that are not comparable."""


class BackendUnavailable(FtsuiteError):
    """A device or service that the configuration asks for and this machine lacks."""


class ScoreError(FtsuiteError, ValueError):
    """A score that its metric cannot give; a ValueError, so that pydantic says where it stands."""


class CellsFailed(FtsuiteError):
    """Some cells of a sweep failed; the others were finished and reported."""


def secret_in(text: str) -> str | None:
    """Name of the first secret variable whose value stands in `text`; None without one."""
    return next((name for name, secret in _secrets() if secret in text), None)


def redact(text: str) -> str:
    """Replace the values of `SECRET_VARIABLES` in `text` by the variable's name."""
    for name, secret in _secrets():
        text = text.replace(secret, f"<{name}>")
    return text


def redacted(plain: Any) -> Any:
    """Return JSON values with every text in them redacted, keys too."""
    if isinstance(plain, str):
        return redact(plain)
    if isinstance(plain, dict):
        return {redact(str(name)): redacted(value) for name, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [redacted(value) for value in plain]
    return plain


def _secrets() -> Iterator[tuple[str, str]]:
    for name in SECRET_VARIABLES:
        secret = os.environ.get(name, "").strip()
        # A value of a few characters would blank out ordinary words.
        if len(secret) >= SHORTEST_SECRET:
            yield name, secret


def one_line(error: BaseException) -> str:
    """Return the message of `error` on one line, without secrets."""
    message = " ".join(str(error).split()) or type(error).__name__
    return redact(message)
