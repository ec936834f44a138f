"""Where the packaged files lie: `conf/` and `evals/`, in a wheel and in a checkout."""

from __future__ import annotations

from pathlib import Path

from ftsuite.errors import DataError

PACKAGE = Path(__file__).resolve().parent


def _packaged(name: str) -> Path:
    # A wheel carries the folder inside the package, a checkout beside it.
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def conf_dir() -> Path:
    """Folder of the Hydra groups."""
    return _packaged("conf")


def evals_dir() -> Path:
    """Folder of the lm-eval tasks, the probes and their small data sets."""
    return _packaged("evals")


def find_file(path: str) -> Path:
    """Return the file at `path`: as it stands, or else beside `conf/`.

    Relative paths are looked up in the working directory first.

    Raises:
        DataError: there is no such file in either place.
    """
    given = Path(path).expanduser()
    for candidate in (given, conf_dir().parent / given):
        if candidate.is_file():
            return candidate
    places = "" if given.is_absolute() else f", neither in {Path.cwd()} nor beside {conf_dir()}"
    kind = "is a folder, not a file" if given.is_dir() else "no such file"
    raise DataError(f"{path}: {kind}{places}; check the path")
