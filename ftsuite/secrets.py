"""Secrets stay out of the settings: a setting is stored, tracked and shown, so it is refused."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import TYPE_CHECKING, Any

from ftsuite.errors import ConfigError, redact, secret_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse a command line that holds the value of a secret variable.

    Raises:
        ConfigError: names the setting and the variable, and not the value.
    """
    for argument in arguments:
        setting, _, value = argument.partition("=")
        _refuse(redact(setting.lstrip("+~")), argument if secret_in(setting) else value)


def refuse_settings(plain: Any, setting: str = "") -> None:
    """Refuse settings that hold the value of a secret variable, wherever they come from.

    Args:
        plain: settings as JSON values (`config.to_plain`).
        setting: path of `plain` among the settings.

    Raises:
        ConfigError: names the setting and the variable, and not the value.
    """
    if isinstance(plain, dict):
        for name, value in plain.items():
            path = f"{setting}.{redact(str(name))}" if setting else redact(str(name))
            _refuse(path, str(name))
            refuse_settings(value, path)
    elif isinstance(plain, list):
        for value in plain:
            refuse_settings(value, setting)
    else:
        _refuse(setting, str(plain))


@contextlib.contextmanager
def redacted_output() -> Iterator[None]:
    """Print what is printed inside without secrets, at the end.

    A file of the user's own, or an interpolation of the environment, may hold one.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        sys.stdout.write(redact(printed.getvalue()))


def _refuse(setting: str, text: str) -> None:
    if name := secret_in(text):
        raise ConfigError(
            setting,
            f"<{name}>",
            f"holds the value of {name}, and settings are stored and shown; leave secrets in the "
            "environment, where the libraries find them",
        )
