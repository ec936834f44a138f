"""A bound on the time and memory of code that a model's author wrote: chat templates."""

from __future__ import annotations

import ctypes
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ftsuite.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 5.0
"""For one short conversation, which takes real templates below a millisecond."""
MORE_BYTES = 2 * 2**30
"""Address space that rendering may take beyond what the process has."""


class _TimeIsUp(BaseException):
    """No `Exception`, so that nothing between the template and `bounded` takes it for its own."""


@contextmanager
def bounded(name: str) -> Iterator[None]:
    """Stop a template that loops without end or makes gigabytes of text, on short conversations.

    The time bound interrupts Python code, which Jinja compiles templates to; the memory bound is
    the kernel's and only there on Linux.

    Raises:
        ConfigError: the code inside took too long or too much memory.
    """
    timer = threading.Timer(SECONDS, _interrupt, (threading.get_ident(),))
    timer.daemon = True
    restore = _limit_memory()
    timer.start()
    try:
        yield
    except (_TimeIsUp, MemoryError) as error:
        what = (
            f"longer than {SECONDS:g} s"
            if isinstance(error, _TimeIsUp)
            else f"more than {MORE_BYTES / 2**30:g} GiB of memory"
        )
        reason = f"takes {what} to render one short conversation; mend its loops"
        raise ConfigError("template.jinja", name, reason) from None
    finally:
        timer.cancel()
        if restore is not None:
            _set_limit(restore)


def _interrupt(thread: int) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TimeIsUp))


def _limit_memory() -> int | None:
    """Lower the limit of the address space; return the limit to restore."""
    if sys.platform != "linux":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    wanted = pages * resource.getpagesize() + MORE_BYTES
    _set_limit(wanted if soft == resource.RLIM_INFINITY else min(soft, wanted))
    return soft


def _set_limit(soft: int) -> None:
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
