"""The task files of our own: which are there, and the names that they give."""

from __future__ import annotations

import fnmatch
import functools
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.errors import DataError
from ftsuite.resources import evals_dir
from ftsuite.scoring.tasks.yaml_files import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    Version = tuple[str, int, int, int]
    """A file as it is now: path, inode, time of change (ns), bytes."""

NAME_LINE = re.compile(
    rb"""^["']?(?P<kind>task|group)["']?[ \t]*:[ \t]*["']?(?P<name>[^\s"'#\[\{][^\r\n"'#]*)""",
    re.MULTILINE,
)
"""The name that a YAML gives its task or group, read without parsing it."""
PYTHON_TASK = re.compile(rb"^[\"']?class[\"']?[ \t]*:", re.MULTILINE)
GROUP_LINE = re.compile(rb"^[\"']?group[\"']?[ \t]*:.*$", re.MULTILINE)
"""A task that is written in Python is no group, whatever group it names."""
NOT_TASKS = ("held_out", "probes", "standard")
"""Folders of evals/ that hold no task files."""


def own_tasks(path: Sequence[str]) -> Mapping[str, tuple[Path, ...]]:
    """Names of the tasks and groups in the folders of `evals.path` and in evals/, and their YAML.

    A name means the first folder that has it. A file that cannot be parsed counts under the name
    that stands in it: only who uses it must hear about it. More than one file of a folder to a name
    is an error for who uses the name.
    """
    return _named(_versions(path))


@functools.lru_cache(maxsize=32)
def _named(versions: tuple[tuple[Version, ...], ...]) -> Mapping[str, tuple[Path, ...]]:
    """See `own_tasks`; these versions of the files are read once, for a sweep asks often."""
    found: dict[str, tuple[Path, ...]] = {}
    for files in _resolved(versions):
        here: dict[str, tuple[Path, ...]] = {}
        for file in files:
            if name := name_in(file):
                here[name] = (*here.get(name, ()), file)
        found = here | found
    return found


def files_in(path: Sequence[str]) -> list[list[Path]]:
    """The YAML files of each folder that is looked into, in the order of their importance."""
    return _resolved(_versions(path))


def _resolved(versions: Iterable[tuple[Version, ...]]) -> list[list[Path]]:
    return [[Path(file).resolve() for file, *_ in folder] for folder in versions]


def _versions(path: Sequence[str]) -> tuple[tuple[Version, ...], ...]:
    """See `files_in`."""
    tops = [str(Path(top)) for top in path]
    own = [(*_yaml_files(top), *_one_deep(top)) for top in tops]
    return (*own, tuple(_one_deep(str(evals_dir()))))


def _one_deep(top: str) -> list[Version]:
    folders = [one for one in _scan(top) if one.is_dir() and one.name not in NOT_TASKS]
    return [file for folder in folders for file in _yaml_files(folder.path)]


def _yaml_files(folder: str) -> list[Version]:
    found = []
    for one in _scan(folder):
        if fnmatch.fnmatchcase(one.name, "*.y*ml") and one.is_file():
            facts = one.stat()
            found.append((one.path, facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return found


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing where there is none or it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda one: one.name)
    except OSError:
        return []


def name_in(path: Path) -> str:
    """The name of the task or group that a YAML defines; empty where it gives none."""
    try:
        config, _ = read_yaml(path)
    except DataError:
        return name_in_text(path.read_bytes())
    name = config.get("group", config.get("task"))
    return name if isinstance(name, str) else ""


def name_in_text(text: bytes) -> str:
    """The group's name, or else the task's, in the text of a YAML; empty without one."""
    if PYTHON_TASK.search(text):
        text = GROUP_LINE.sub(b"", text)
    names = {
        match["kind"]: match["name"].decode("utf-8", "replace").strip()
        for match in reversed(list(NAME_LINE.finditer(text)))
    }
    return names.get(b"group") or names.get(b"task", "")
