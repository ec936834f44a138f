"""YAML files of ours, read strictly: no key twice, no aliases without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from ftsuite.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


MOST_NODES = 100_000
"""Values in a file, aliases (`*name`) written out: nine lines of them can make billions."""


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML takes the last of two equal keys."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                problem = f"the key {key.value!r} twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def check_aliases(text: str, Loader: Any = yaml.SafeLoader) -> None:
    """Refuse aliases that make a small file endless.

    Raises:
        YAMLError: not YAML either.
    """
    if "&" not in text or "*" not in text:
        return
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if id(node) not in sizes:
            # An alias of what it stands in is never done.
            sizes[id(node)] = MOST_NODES
            values = [] if isinstance(node.value, str) else node.value
            parts = [
                one for value in values for one in (value if isinstance(value, tuple) else [value])
            ]
            sizes[id(node)] = 1 + sum(map(size, parts))
        return sizes[id(node)]

    node = yaml.compose(text, Loader=Loader)
    if node is not None and size(node) > MOST_NODES:
        raise yaml.MarkedYAMLError(problem="aliases of aliases without end")


def read(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        DataError: cannot be read, not UTF-8, or not YAML; without the file's name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        check_aliases(text)
        # A subclass of SafeLoader.
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DataError(f"{line}{error.problem}; mend the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start}); convert the file") from error
    except RecursionError as error:
        raise DataError("nested too deeply; mend the file") from error
    except (yaml.YAMLError, ValueError) as error:
        said = " ".join(str(error).partition(";")[0].split())
        raise DataError(f"{said}; mend the file") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); check the file") from error
