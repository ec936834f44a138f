"""Probe files: a system prompt, questions, checks and contrasts, proved to measure something."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ftsuite import checks, yamlfile
from ftsuite.errors import ConfigError, DataError
from ftsuite.resources import evals_dir
from ftsuite.store import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ftsuite.config import ProbesConfig

NAME = re.compile(r"\w[\w .-]{0,99}")
MOST_RUNS = 40
RUN = 200
"""Repeats in a text that a pattern is tried on: 2 to the power of it for one that backtracks."""
STRICT = {"extra": "forbid"}
"""A misspelt key of a probe file is an error, not a key that is never read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A wanted and a plain answer to the same prompt."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    prompt: str
    wanted: str
    plain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe file: a system prompt, questions, checks and contrasts."""

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT

    name: str
    system: str
    prompts: list[str]
    description: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    contrasts: list[Contrast] = field(default_factory=list)


def read_probes(config: ProbesConfig) -> list[Probe]:
    """Read and check the configured probe files.

    Raises:
        ConfigError: a file is missing, malformed, or measures nothing.
        StageError: a check's pattern backtracks without end.
    """
    from pydantic import TypeAdapter, ValidationError

    found: dict[str, Probe] = {}
    for name in config.files:
        path = probe_file(name)
        try:
            content = yamlfile.read(path)
            if not isinstance(content, dict):
                raise DataError("no mapping with name, system and prompts; mend the file")
            probe = TypeAdapter(Probe).validate_python(content)
        except ValidationError as error:
            # The value is left out: it may be long.
            wrong = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
            reason = f"{path.name} is not a probe: {'; '.join(wrong[:3])}; mend the file"
            raise ConfigError("probes.files", name, reason) from error
        except DataError as error:
            reason = f"{path.name} is not a probe: {error}"
            raise ConfigError("probes.files", name, reason) from error
        if reason := _fault(probe):
            raise ConfigError("probes.files", name, reason)
        _try_checks(probe)
        if probe.name in found:
            reason = f"its probe has the name of another file's, {probe.name}; give it its own"
            raise ConfigError("probes.files", name, reason)
        found[probe.name] = probe
    return list(found.values())


def probe_file(name: str) -> Path:
    """Return the YAML file of a probe: a path, or a name below evals/probes.

    Raises:
        ConfigError: there is none.
    """
    for path in (Path(name), evals_dir() / "probes" / f"{name}.yaml"):
        try:
            if path.is_file():
                return path
        except OSError as error:
            raise ConfigError("probes.files", name, f"{error.strerror}; check the path") from error
    known = ", ".join(sorted(p.stem for p in (evals_dir() / "probes").glob("*.yaml")))
    raise ConfigError("probes.files", name, f"no such probe; known are {known}, or give a path")


def identity(config: ProbesConfig) -> dict[str, str]:
    """What the answers depend on besides the settings: the probe files' contents."""
    return {name: file_digest(probe_file(name)) for name in config.files}


def _fault(probe: Probe) -> str:
    """Why a probe would measure nothing, or not what it says; empty if it does."""
    if not NAME.fullmatch(probe.name):
        return f"name: {probe.name!r} must be 1 to 100 letters, digits, spaces, '.', '_' and '-'"
    if not probe.system.strip():
        return "system: it is empty, so answers with and without it are the same"
    if not probe.prompts:
        return "the probe has no prompts"
    texts = [("prompts", prompt) for prompt in probe.prompts]
    for contrast in probe.contrasts:
        texts += [(f"contrasts: {name}", getattr(contrast, name)) for name in Contrast.__slots__]
        if contrast.wanted == contrast.plain:
            return f"contrasts: wanted and plain are the same for {contrast.prompt!r}"
    for name, text in texts:
        if not text.strip():
            return f"{name}: one is empty; write it or take it out"
    for name, count in Counter(probe.prompts).items():
        if count > 1:
            return f"prompts: {name!r} is there {count} times; once is enough"
    return ""


def _try_checks(probe: Probe) -> None:
    """Build the checks, and run them on texts that make a careless pattern go on for ever.

    Raises:
        ConfigError: a check is wrong.
        StageError: a pattern takes too long.
    """
    for spec in probe.checks:
        check = checks.build(spec, f"probe {probe.name}")
        if spec["kind"] == "regex":
            for text in _hard_texts(probe, spec["pattern"]):
                check(text)


def _hard_texts(probe: Probe, pattern: str) -> Iterator[str]:
    """The probe's own answers, and long runs of what the pattern may repeat, with a wrong end."""
    for contrast in probe.contrasts:
        yield from (contrast.wanted, contrast.plain)
    literals = re.findall(r"\w+", pattern) + list(filter(str.isalnum, pattern))
    units = dict.fromkeys(["a", "1", " ", "a ", "a, ", *literals])
    for unit in list(units)[:MOST_RUNS]:
        yield unit * RUN + "\x00"
