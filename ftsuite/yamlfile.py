"""YAML files of ours, read strictly: no key twice, no aliases that grow without end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from ftsuite.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML takes the last of two equal keys, and expands aliases of aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            problem = "an alias (*name), which is not read here"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.get_mark())
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                problem = f"the key {key.value!r} twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        DataError: cannot be read, not UTF-8, or not YAML; without the file's name.
    """
    try:
        # A subclass of SafeLoader.
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise DataError(f"{line}{error.problem}; mend the file") from error
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start}); convert the file") from error
    except RecursionError as error:
        raise DataError("nested too deeply; mend the file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(f"{' '.join(str(error).split())}; mend the file") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror}); check the file") from error
