"""Who holds a lease: a process, and whether it still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HOST_VARIABLE = "FTSUITE_HOST_NAME"
"""Environment variable: this host's name in leases, in place of `socket.gethostname()`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease, as its file says."""

    token: str
    """32 hex digits, new with every lease."""
    host: str
    boot: str
    """Id of this run of the kernel, "" where the system has none."""
    pid_namespace: str
    """Inode of the namespace that `pid` belongs to, "" where the system has none."""
    pid: int
    process_start: float
    """Tells the process from a later one with its number; see `_process_start`."""
    started: str
    """When the lease was taken, UTC."""
    beat: int = 0

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}"


def this_process(token: str) -> Holder:
    """This process as the holder of a lease with `token`."""
    host, boot, namespace = _place()
    return Holder(
        token=token,
        host=host,
        boot=boot,
        pid_namespace=namespace,
        pid=os.getpid(),
        process_start=_process_start(os.getpid()) or 0.0,
        started=datetime.now(UTC).isoformat(),
    )


def _place() -> tuple[str, str, str]:
    """Within what a process number means one process: host, run of the kernel, namespace.

    Containers may share the first and the second, machines of one image the first.
    """
    host = os.environ.get(HOST_VARIABLE) or socket.gethostname()
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        # Not Linux: there are no namespaces, and the host's name has to do.
        return host, "", ""
    return host, boot, namespace


def is_here(who: Holder) -> bool:
    """Whether the holder's process number means something to this process."""
    return (who.host, who.boot, who.pid_namespace) == _place()


def is_dead(who: Holder) -> bool:
    """Whether the holder's process is known to be gone."""
    if not is_here(who):
        return False
    try:
        os.kill(who.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # another user's; it is there
    start = _process_start(who.pid)
    return start is not None and start != who.process_start


def _process_start(pid: int) -> float | None:
    """When a process began; -1 for one that has ended and not been waited for, None if unknown.

    On Linux in clock ticks since the machine started (proc(5), `starttime`): unlike psutil's
    create_time, no change of the clock moves it. Elsewhere in seconds since the epoch.
    """
    if Path("/proc/self/stat").exists():
        try:
            text = Path(f"/proc/{pid}/stat").read_text("utf-8", errors="replace")
        except OSError:
            return None  # ended just now, or hidden from other users (hidepid)
        # The name, in parentheses, may hold anything; state is the 3rd field, starttime the 22nd.
        fields = text.rpartition(")")[2].split()
        return -1.0 if fields[0] in "ZX" else float(fields[19])
    import psutil

    try:
        process = psutil.Process(pid)
        return -1.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
