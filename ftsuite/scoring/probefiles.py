"""Probe files: which file a name means, and what it says (docs/probes.md describes them)."""

from __future__ import annotations

import functools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite import yamlfile
from ftsuite.errors import ConfigError, DataError, shorten
from ftsuite.resources import evals_dir
from ftsuite.scoring import checks, probevalues
from ftsuite.store.entries import file_digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ftsuite.config import ProbesConfig

NAME = re.compile(r"\w[\w .-]{0,99}")
ENDINGS = (".yaml", ".yml")
MOST_RUNS = 40
RUN = 200
"""Repeats in a text that a pattern is tried on: 2 to the power of it for one that backtracks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrast:
    """A wanted and a plain answer to the same prompt."""

    prompt: str
    wanted: str
    plain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemPrompt:
    """One system prompt of a probe, with what holds for its answers alone."""

    name: str = ""
    """Empty where the probe has one system prompt, under `system`."""
    text: str
    checks: list[dict[str, Any]] = field(default_factory=list)
    """Beside those of the probe."""
    contrasts: list[Contrast] = field(default_factory=list)
    """Beside those of the probe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe file: system prompts, questions, checks and contrasts."""

    name: str
    systems: list[SystemPrompt]
    prompts: list[str]
    description: str = ""
    checks: list[dict[str, Any]] = field(default_factory=list)
    """Of the answers to every system prompt, and without one."""
    contrasts: list[Contrast] = field(default_factory=list)


FILE_KEYS = ("name", "description", "system", "systems", "prompts", "checks", "contrasts")
SYSTEM_KEYS = ("system", "checks", "contrasts")


def read_probes(config: ProbesConfig, folders: Sequence[str] = ()) -> list[Probe]:
    """Read and check the configured probe files.

    Args:
        config: names them.
        folders: where else names are looked up, before evals/ (`evals.path`).

    Raises:
        ConfigError: a file is missing, malformed, or measures nothing.
        StageError: a check's pattern backtracks without end.
    """
    found: dict[str, Probe] = {}
    for entry, path in _files(config, folders):
        probe = _read(entry, path)
        _try_patterns(probe)
        if probe.name in found:
            reason = f"its probe has the name of another file's, {probe.name}; give it its own"
            raise ConfigError("probes.files", entry, f"{path.name}: {reason}")
        found[probe.name] = probe
    return list(found.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedProbe:
    """A probe's file, its content's digest, and the name that it gives the probe."""

    name: str
    path: Path
    sha256: str


def named(config: ProbesConfig, folders: Sequence[str] = ()) -> list[NamedProbe]:
    """The configured probes, in order, without what they ask.

    Raises:
        ConfigError: a file is missing or malformed.
    """
    return [
        NamedProbe(name=_name_in(entry, path, digest), path=path, sha256=digest)
        for entry, path in _files(config, folders)
        for digest in [file_digest(path)]
    ]


@functools.cache
def _name_in(entry: str, path: Path, digest: str) -> str:
    """The name that a probe file gives its probe; a sweep of many cells asks for it often."""
    return _read(entry, path).name


def _files(config: ProbesConfig, folders: Sequence[str]) -> list[tuple[str, Path]]:
    """The configured entries with the files that they mean, in order."""
    return [(entry, path) for entry in config.files for path in probe_files(entry, folders)]


def probe_files(entry: str, folders: Sequence[str] = ()) -> list[Path]:
    """Return the YAML files of an entry of `probes.files`.

    An entry is the path of a file; or a probe's name, which is that of its file without the ending,
    in the first of `folders` that has it, there in `probes/` or directly, or else in evals/probes;
    or the path of a folder, for all YAML files in it.

    Raises:
        ConfigError: there is none, or several of one folder have the name.
    """
    given = Path(entry).expanduser()
    try:
        if given.is_file():
            return [given]
        if named := _named(entry, folders):
            return [named]
        inside = _yaml_files(given)
        if given.is_dir() and not inside:
            raise ConfigError("probes.files", entry, "no YAML file lies in this folder; add one")
    except OSError as error:
        raise ConfigError("probes.files", entry, f"{error.strerror}; check the path") from error
    if inside:
        return inside
    known = sorted({path.stem for path in _yaml_files(evals_dir() / "probes")})
    own = sorted({p.stem for f in folders for p in _yaml_files(Path(f).expanduser() / "probes")})
    names = ", ".join(dict.fromkeys([*known, *own]))
    remedy = f"no such probe; known are {names}, or give the path of a YAML file or folder"
    raise ConfigError("probes.files", entry, remedy)


def _named(name: str, folders: Sequence[str]) -> Path | None:
    """The file of a probe's name; None if there is none."""
    if not NAME.fullmatch(name):
        return None
    for folder in (*map(Path, folders), evals_dir()):
        top = folder.expanduser()
        # In evals/ itself there are folders alone.
        places = [top / "probes", top]
        files = [place / f"{name}{ending}" for place in places for ending in ENDINGS]
        found = [path for path in files if path.is_file()]
        if len(found) > 1:
            both = f"{found[0]} and {found[1]} have this name"
            raise ConfigError("probes.files", name, f"{both}; give a path")
        if found:
            return found[0]
    return None


def _yaml_files(folder: Path) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in found if path.suffix in ENDINGS and path.is_file())


def _read(entry: str, path: Path) -> Probe:
    """Read one file, and check all of it but how long its patterns take.

    Raises:
        ConfigError: it is no probe, or would measure nothing.
    """
    try:
        probe = _probe(yamlfile.read(path))
        _check(probe)
    except DataError as error:
        # The whole path where a name or a folder stands for it.
        file = path.name if path == Path(entry) else path
        reason = f"{file} is not a probe: {error}"
        raise ConfigError("probes.files", entry, reason) from error
    return probe


def _probe(content: object) -> Probe:
    if not isinstance(content, dict):
        raise DataError("no mapping with name, system and prompts; mend the file")
    probevalues.mapping(content, "", FILE_KEYS, ("name", "prompts"))
    return Probe(
        name=_name(content["name"], "name"),
        description=_optional(content, "description"),
        systems=_systems(content),
        prompts=probevalues.texts(content["prompts"], "prompts"),
        checks=_checks(content, ""),
        contrasts=_contrasts(content, ""),
    )


def _optional(content: dict[str, Any], key: str) -> str:
    return probevalues.text(content[key], key) if content.get(key, "") != "" else ""


def _name(value: object, place: str) -> str:
    name = probevalues.text(value, place) if value != "" else ""
    if not NAME.fullmatch(name):
        rule = "must be 1 to 100 letters, digits, spaces, '.', '_' and '-'; rename it"
        raise DataError(f"{place}: {shorten(name)!r} {rule}")
    return name


def _systems(content: dict[str, Any]) -> list[SystemPrompt]:
    """The one system prompt under `system`, or those under `systems`, with their own checks."""
    if ("system" in content) == ("systems" in content):
        many = "systems: {name: text, …} where there are several"
        if "system" in content:
            raise DataError(f"system and systems are both there; keep one: system, or {many}")
        raise DataError(f"the key system is missing; write system: … with the text, or {many}")
    if "system" in content:
        return [SystemPrompt(text=probevalues.text(content["system"], "system"))]
    several = content["systems"]
    if not isinstance(several, dict) or not several:
        raise DataError(
            "systems: must be a mapping from names to texts, and is "
            f"{probevalues.kind_of(several) if several != {} else 'empty'}; write systems: "
            "{pirate: You are a pirate.}"
        )
    return [_system(name, value) for name, value in several.items()]


def _system(name: object, value: object) -> SystemPrompt:
    named = _name(name, f"systems: the name {name!r}" if isinstance(name, str) else "systems: name")
    place = f"systems.{named}"
    if not isinstance(value, dict):
        return SystemPrompt(name=named, text=probevalues.text(value, place))
    probevalues.mapping(value, place, SYSTEM_KEYS, ("system",))
    return SystemPrompt(
        name=named,
        text=probevalues.text(value["system"], f"{place}.system"),
        checks=_checks(value, f"{place}."),
        contrasts=_contrasts(value, f"{place}."),
    )


def _checks(content: dict[str, Any], before: str) -> list[dict[str, Any]]:
    listed = probevalues.sequence(content.get("checks", []), f"{before}checks", "checks")
    for number, spec in enumerate(listed):
        checks.build(spec, "", f"{before}checks[{number}]")
    return listed


def _contrasts(content: dict[str, Any], before: str) -> list[Contrast]:
    name = f"{before}contrasts"
    listed = probevalues.sequence(content.get("contrasts", []), name, "contrasts")
    found = []
    for number, entry in enumerate(listed):
        place = f"{name}[{number}]"
        probevalues.mapping(entry, place, Contrast.__slots__, Contrast.__slots__)
        texts = {key: probevalues.text(entry[key], f"{place}.{key}") for key in Contrast.__slots__}
        found.append(Contrast(**texts))
        if texts["wanted"] == texts["plain"]:
            raise DataError(f"{place}: wanted and plain are the same; write another plain answer")
    return found


def _check(probe: Probe) -> None:
    """Refuse a probe that would measure nothing, or the same twice.

    Raises:
        DataError: says where and why.
    """
    if not probe.prompts:
        raise DataError("prompts: the probe has no prompts; write at least one")
    for name, count in Counter(probe.prompts).items():
        if count > 1:
            said = f"{shorten(name)!r} is there {count} times; once is enough"
            raise DataError(f"prompts: {said}")
    names: dict[str, str] = {}
    for system in probe.systems:
        if twin := names.get(system.text):
            raise DataError(
                f"systems.{system.name}: has the text of {twin}, so the answers are the same; put "
                "the checks of both in one"
            )
        names[system.text] = system.name


def _try_patterns(probe: Probe) -> None:
    """Run the patterns on texts that make a careless one go on for ever.

    Raises:
        StageError: a pattern takes too long.
    """
    contrasts = [*probe.contrasts, *(one for system in probe.systems for one in system.contrasts)]
    for spec in [*probe.checks, *(one for system in probe.systems for one in system.checks)]:
        if spec["kind"] == "regex":
            check = checks.build(spec, f"probe {probe.name}")
            for text in _hard_texts(contrasts, spec["pattern"]):
                check(text)


def _hard_texts(contrasts: list[Contrast], pattern: str) -> Iterator[str]:
    """The probe's own answers, and long runs of what the pattern may repeat, with a wrong end."""
    for contrast in contrasts:
        yield from (contrast.wanted, contrast.plain)
    literals = re.findall(r"\w+", pattern) + list(filter(str.isalnum, pattern))
    units = dict.fromkeys(["a", "1", " ", "a ", "a, ", *literals])
    for unit in list(units)[:MOST_RUNS]:
        yield unit * RUN + "\x00"
