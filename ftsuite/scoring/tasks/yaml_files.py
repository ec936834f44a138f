"""Task YAML as lm-eval reads it: `include:` merged, `!function` kept as a reference.

lm-eval's loader imports what a YAML names; this one only reads, so that names and metrics can be
checked at once and every file that a task depends on can enter the store's key.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ftsuite.errors import DataError
from ftsuite.resources import evals_dir
from ftsuite.yamlfile import check_aliases

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A `!function module.name` that nothing has imported yet."""

    folder: Path
    """Folder of the YAML that names it."""
    spec: str

    @property
    def name(self) -> str:
        """The function's own name, which is also a metric's."""
        return self.spec.rpartition(".")[2]

    @property
    def file(self) -> Path:
        """The module beside the YAML."""
        return self.folder / f"{self.spec.rpartition('.')[0].replace('.', '/')}.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """One task of lm-eval as its YAML describes it, before lm-eval builds it."""

    name: str
    """lm-eval's name of the task."""
    path: Path
    """The YAML that defines the task."""
    config: dict[str, Any]
    """Includes and a group's overrides merged in; functions are `FunctionRef`."""
    files: tuple[Path, ...]
    """Every YAML that was read for it."""
    is_own: bool
    """From evals/, not from lm-eval."""

    @property
    def output_type(self) -> Any:
        """What is asked of the model; lm-eval's default where the YAML does not say."""
        return self.config.get("output_type", "generate_until")

    @property
    def metadata(self) -> dict[str, Any]:
        """What the YAML says about itself, beside what lm-eval reads."""
        return self.config.get("metadata") or {}

    @property
    def where(self) -> str:
        """The YAML, as messages name it."""
        return shown(self.path)


def shown(path: Path) -> str:
    """A path below evals/ or lm-eval's tasks as a message names it."""
    for top in (evals_dir().parent, harness_folder().parent.parent):
        if path.is_relative_to(top):
            return str(path.relative_to(top))
    return str(path)


@functools.cache
def harness_folder() -> Path:
    """Folder of lm-eval's own tasks, found without importing lm-eval."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise DataError("lm_eval is not installed; run `make venv`")
    return Path(spec.origin).parent / "tasks"


def read_yaml(path: Path) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """Return a YAML's content with its includes merged in, and the files that were read.

    Raises:
        DataError: missing, not UTF-8, not YAML, no mapping, or an `include:` that cannot be read.
    """
    return _merged(path.resolve(), ())


def _merged(path: Path, above: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Path, ...]]:
    if path in above:
        raise DataError(f"{shown(path)}: includes itself; take one `include:` out")
    own = dict(_parse(path))
    includes = own.pop("include", [])
    merged: dict[str, Any] = {}
    files = [path]
    for name in includes if isinstance(includes, list) else [includes]:
        if not isinstance(name, str):
            raise DataError(f"{shown(path)}: include: {name!r} is no file name; name a YAML file")
        if not (path.parent / name).is_file():
            raise DataError(f"{shown(path)}: include: {name}: no such file; it is looked up there")
        content, read = _merged((path.parent / name).resolve(), (*above, path))
        merged |= {key: value for key, value in content.items() if key != "task_list"}
        files += read
    return merged | own, tuple(dict.fromkeys(files))


def _parse(path: Path) -> dict[str, Any]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{shown(path)}: {error.strerror}; check the path") from error
    return _parse_version(path, facts.st_mtime_ns, facts.st_size)


@functools.lru_cache(maxsize=4096)
def _parse_version(path: Path, changed_ns: int, size: int) -> dict[str, Any]:
    """Parse one version of a file; a later version is another entry of the cache."""
    del changed_ns, size
    where = shown(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
        check_aliases(text, Loader=_loader(path.parent))
        content = yaml.load(text, Loader=_loader(path.parent))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); convert it") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DataError(f"{where}{line}: not YAML ({problem}); mend the file") from error
    except RecursionError as error:
        raise DataError(f"{where}: nested too deeply; mend the file") from error
    except ValueError as error:  # an integer of thousands of digits, an impossible date
        raise DataError(f"{where}: not YAML ({error}); mend the file") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError(f"{where}: no mapping of settings (`key: value`); mend the file")
    return content


def _loader(folder: Path) -> Any:
    class Loader(_Base):  # type: ignore[misc]
        """A safe loader that knows lm-eval's one tag, and refuses a key that is there twice."""

    # A few of lm-eval's own files have some; YAML then takes the last one.
    refuses_repeats = not folder.is_relative_to(harness_folder())

    def function(loader: Any, node: Any) -> FunctionRef:
        return FunctionRef(folder, str(loader.construct_scalar(node)))

    def mapping(loader: Any, node: Any) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value if refuses_repeats else ():
            if key.value in seen and isinstance(key.value, str) and key.value != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return _Base.construct_yaml_map(loader, node)

    Loader.add_constructor("!function", function)
    Loader.add_constructor("tag:yaml.org,2002:map", mapping)
    return Loader


def functions(value: Any) -> list[FunctionRef]:
    """The functions that a configuration names, however deep."""
    if isinstance(value, FunctionRef):
        return [value]
    if isinstance(value, dict):
        return [found for item in value.values() for found in functions(item)]
    if isinstance(value, list):
        return [found for item in value for found in functions(item)]
    return []
