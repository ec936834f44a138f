"""Locks that hold across processes and hosts, on local and on shared file systems.

A lease is a small file `PATH.lease` that says who holds it. It is made by a hard link, which fails
where the file exists, on NFS too (open(2) of Linux, under O_EXCL, describes this way). Its holder
sets the file's time every few seconds. It has lapsed

- at once, where its holder ran in this host's process table and is not there any more;
- else when an observer has seen the same file time for `LAPSE_SECONDS`, by the observer's own
  clock: clocks of two hosts are never compared.

Whoever takes a lapsed lease over may be wrong (a suspended machine wakes up again). So a lease
keeps work from being done twice; results do not depend on it: each holder writes into a folder of
its own (entries.py), and the first whole result stays.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEARTBEAT_SECONDS = 5.0
LAPSE_SECONDS = 60.0
"""Twelve heartbeats: a busy file server may delay some."""
POLL_SECONDS = 0.5
LOOK_SECONDS = 600.0
"""From this age on, by this host's clock, a lease of another host counts as lapsed for who looks
once and cannot wait: ten minutes are more than clocks differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds a lease."""

    token: str
    """Of this holding alone."""
    host: str
    table: str
    """The process table that `pid` is from: boot and PID namespace; containers have their own."""
    pid: int
    process_start: float
    """Tells two processes of one pid apart."""
    started: str
    """UTC, ISO 8601."""


class Lease:
    """A lease that this process holds."""

    def __init__(self, path: Path, holder: Holder, handle: int) -> None:
        self.path, self.holder, self._handle = path, holder, handle
        self.lost = False
        """Whether somebody has taken it over."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def token(self) -> str:
        """What tells this holding from every other."""
        return self.holder.token

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            if not self.check():
                return
            # By the open file: a lease that was taken over is another file.
            with contextlib.suppress(OSError):
                os.utime(self._handle)

    def check(self) -> bool:
        """Whether it is still held; remembers if it is not."""
        found = _read(self.path)
        self.lost = self.lost or found is None or found[0].token != self.token
        return not self.lost

    def release(self) -> None:
        """Give it back."""
        self._end.set()
        self._thread.join()
        os.close(self._handle)
        if not self.lost:
            _remove(self.path, self.token)


def acquire(path: Path) -> Lease | None:
    """Take the lease of `path` if nobody has it, or if its holder is known to have ended.

    Raises:
        OSError: the folder cannot be written.
    """
    lease = lease_path(path)
    found = _read(lease)
    if found is not None:
        if not _has_ended(found[0]):
            return None
        _remove(lease, found[0].token)
    return _link(lease)


@contextmanager
def held(path: Path, on_wait: Callable[[Holder], None] = lambda _: None) -> Iterator[Lease]:
    """Hold the lease of `path`, waiting for others.

    Args:
        path: what it is for; its folder is there.
        on_wait: told once who holds it, if somebody does.

    Raises:
        OSError: the folder cannot be written.
    """
    seen: tuple[str, int] | None = None
    since, told = time.monotonic(), False
    while (lease := acquire(path)) is None:
        found = _read(lease_path(path))
        if found is None:
            continue
        holder, beat = found
        if not told:
            told = True
            on_wait(holder)
        if seen != (holder.token, beat):
            seen, since = (holder.token, beat), time.monotonic()
        elif time.monotonic() - since >= LAPSE_SECONDS:
            _remove(lease_path(path), holder.token)
            continue
        time.sleep(POLL_SECONDS)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def held_if_free(path: Path) -> Iterator[Lease | None]:
    """Hold the lease of `path` if nobody does; the value is None where somebody does.

    Raises:
        OSError: the folder cannot be written.
    """
    lease = acquire(path)
    try:
        yield lease
    finally:
        if lease is not None:
            lease.release()


def holder(path: Path) -> Holder | None:
    """Who holds the lease of `path`; None where it is free. Writes nothing, and does not wait."""
    found = _read(lease_path(path))
    if found is None or _has_ended(found[0]):
        return None
    age = time.time() - found[1] / 1e9
    return None if not _is_here(found[0]) and age > LOOK_SECONDS else found[0]


def lease_path(path: Path) -> Path:
    """The file of the lease of `path`."""
    return path.with_name(f"{path.name}.lease")


def _link(lease: Path) -> Lease | None:
    holder = _myself()
    draft = lease.with_name(f".{lease.name}.{holder.token}")
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        os.write(handle, json.dumps(asdict(holder)).encode())
        os.fsync(handle)
        try:
            os.link(draft, lease)
        except FileExistsError:
            # The answer of a file server can get lost: then the link is there all the same.
            if os.fstat(handle).st_nlink != 2:
                os.close(handle)
                return None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                raise
            # A file system without hard links; a rename would not fail where a lease is.
            if lease.exists():
                os.close(handle)
                return None
            os.rename(draft, lease)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise
    finally:
        draft.unlink(missing_ok=True)
    return Lease(lease, holder, handle)


def _remove(lease: Path, token: str) -> None:
    """Remove a lease, unless it has become another's meanwhile."""
    aside = lease.with_name(f".{lease.name}.{uuid.uuid4().hex}")
    try:
        os.rename(lease, aside)
    except FileNotFoundError:
        return
    found = _read(aside)
    if found is not None and found[0].token != token:
        # Somebody was faster, and holds it now.
        with contextlib.suppress(FileExistsError):
            os.link(aside, lease)
    aside.unlink(missing_ok=True)


def _read(lease: Path) -> tuple[Holder, int] | None:
    """Who holds a lease, and its file's time in nanoseconds; None where there is none."""
    try:
        # Opened and not only looked at: network file systems then ask the server.
        with lease.open(encoding="utf-8") as file:
            return Holder(**json.load(file)), os.fstat(file.fileno()).st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ESTALE:
            return None
        raise


def _has_ended(holder: Holder) -> bool:
    """Whether the holder is known not to be there any more; only of processes seen from here."""
    if not _is_here(holder):
        return False
    try:
        is_zombie = psutil.Process(holder.pid).status() == psutil.STATUS_ZOMBIE
        return is_zombie or _start_of(holder.pid) != holder.process_start
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _start_of(pid: int) -> float:
    """When a process started: on Linux in clock ticks since boot, which no clock can move.

    proc(5): `starttime` is the 22nd field, the 20th behind the name in brackets.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return psutil.Process(pid).create_time()
    return float(stat.rpartition(")")[2].split()[19])


def _is_here(holder: Holder) -> bool:
    return (holder.host, holder.table) == (_host(), _table())


def _myself() -> Holder:
    from ftsuite.provenance import now

    return Holder(
        token=uuid.uuid4().hex,
        host=_host(),
        table=_table(),
        pid=os.getpid(),
        process_start=_start_of(os.getpid()),
        started=now(),
    )


def _host() -> str:
    return socket.gethostname()


def _table() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)
