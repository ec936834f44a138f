"""Leases: one process at a time works on a path, also on shared file systems and across hosts.

A lease on `<path>` is the file `<path>.lease`, which says who holds it (`Holder`). The holder
raises the number `beat` in it every `HEARTBEAT_SECONDS`. The lease is over

- at once where its process was of this host and is gone, or its number is another process's now;
- else once an observer has seen the same beat for `LAPSE_SECONDS` of its own clock. Clocks of two
  hosts are never compared.

Then whoever waits takes it over; `leasefiles` says how, so that one alone can.

What can go wrong: a holder that is alive but stands still for `LAPSE_SECONDS` (SIGSTOP, a call
that keeps Python's interpreter lock, a network that is down) is taken for dead, and goes on working
until its next heartbeat finds out (`Lease.lost`). What is done under a lease must survive that; the
store does (`entries.run_stage`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite.errors import StoreError
from ftsuite.store import leasefiles
from ftsuite.store.holders import Holder, is_dead, is_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import FileIO
    from pathlib import Path

HEARTBEAT_SECONDS = 10.0
LAPSE_SECONDS = 60.0
"""Six beats: a busy file system may delay some."""
SILENCE_SECONDS = 900.0
"""Age of another host's last beat from which on one look calls its lease over.

One look has the clocks of two machines alone to go by; hosts that keep time differ by far less.
"""
POLL_SECONDS = 0.2
RETRY_SECONDS = 0.01
"""Pause after another process was faster."""
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What link(2) says on file systems without hard links."""


@dataclass(slots=True)
class Lease:
    """A lease that this process holds."""

    path: Path
    token: str
    """32 hex digits, new with every lease."""
    lost: bool = False
    """Whether a heartbeat found that another process has taken the lease over."""

    def is_lost(self) -> bool:
        """Look now, instead of waiting for the next heartbeat."""
        chain = leasefiles.chain_of(self.path)
        return self.lost or not chain or chain[-1].token != self.token


@dataclass(slots=True)
class _Watch:
    """What an observer has seen of a lease, and for how long by its own clock."""

    lapse_seconds: float
    step_seconds: float
    """The most that one look counts for: an observer that was stopped itself has observed nothing
    meanwhile, and may have been stopped together with the holder."""
    seen: tuple[str, int] | None = None
    silent_seconds: float = 0.0
    looked: float = field(default_factory=time.monotonic)

    def is_over(self, holder: Holder) -> bool:
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, self.step_seconds), now
        if self.seen == (holder.token, holder.beat):
            self.silent_seconds += passed
        else:
            self.seen, self.silent_seconds = (holder.token, holder.beat), 0.0
        return is_dead(holder) or self.silent_seconds >= self.lapse_seconds


@contextmanager
def held(
    path: Path,
    *,
    on_wait: Callable[[Holder], None] = lambda _: None,
    poll_seconds: float = POLL_SECONDS,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
    lapse_seconds: float = LAPSE_SECONDS,
) -> Iterator[Lease]:
    """Hold the lease on `path`, which need not exist; wait while another process holds it.

    The lease is this process's alone: a child that it forks neither holds it nor gives it back.

    Args:
        path: what is leased; its folder is made if need be.
        on_wait: told once, at the first look that finds the lease held.
        poll_seconds: between two looks at a lease that is held.
        heartbeat_seconds: between two beats.
        lapse_seconds: how long the same beat must be seen until the lease is taken over.

    Raises:
        StoreError: no file can be written beside `path`, or none can be linked.
    """
    lease, process = Lease(path, uuid.uuid4().hex), os.getpid()
    stop = threading.Event()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for chain in _chances(path, on_wait, poll_seconds, lapse_seconds):
                if _take(chain, lease, stop, heartbeat_seconds):
                    break
        except OSError as error:
            raise _unusable(path, error) from error
        yield lease
    finally:
        if os.getpid() == process:
            stop.set()
            # A folder that was deleted must not hide what the work itself raised. A lease that
            # stays is over when this process ends.
            with contextlib.suppress(OSError):
                leasefiles.give_back(path, lease.token)


@contextmanager
def held_if_free(path: Path) -> Iterator[Lease | None]:
    """Hold the lease on `path` if nobody does, or if its holder is known to be dead.

    Yields:
        None where another process holds it.

    Raises:
        StoreError: as for `held`.
    """
    chain = leasefiles.chain_of(path)
    if chain and not is_dead(chain[-1]):
        yield None
        return
    lease, process = Lease(path, uuid.uuid4().hex), os.getpid()
    stop = threading.Event()
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            is_mine = _take(chain, lease, stop, HEARTBEAT_SECONDS)
        except OSError as error:
            raise _unusable(path, error) from error
        yield lease if is_mine else None
    finally:
        if os.getpid() == process:
            stop.set()
            with contextlib.suppress(OSError):
                leasefiles.give_back(path, lease.token)


def wait(
    path: Path,
    *,
    on_wait: Callable[[Holder], None] = lambda _: None,
    poll_seconds: float = POLL_SECONDS,
    lapse_seconds: float = LAPSE_SECONDS,
) -> None:
    """Wait until nobody holds the lease on `path`; writes nothing."""
    next(_chances(path, on_wait, poll_seconds, lapse_seconds))


def holder(path: Path) -> Holder | None:
    """Who holds the lease on `path`, as far as one look can tell; writes nothing.

    A holder of this host is believed while its process lives. One of another host is believed
    until its last beat is `SILENCE_SECONDS` old by this host's clock: one look cannot see whether
    it beats. `wait` and `held` can, and know sooner.

    Returns:
        None where the lease is free, or its holder dead.
    """
    chain = leasefiles.chain_of(path)
    if not chain or is_dead(chain[-1]):
        return None
    if is_here(chain[-1]):
        return chain[-1]
    try:
        age_seconds = time.time() - leasefiles.last_file(path, chain).stat().st_mtime
    except FileNotFoundError:
        return None
    return chain[-1] if age_seconds < SILENCE_SECONDS else None


def _chances(
    path: Path, on_wait: Callable[[Holder], None], poll_seconds: float, lapse_seconds: float
) -> Iterator[leasefiles.Chain]:
    """Yield whenever the lease is free or over, with whom it belonged to."""
    watch = _Watch(lapse_seconds, step_seconds=max(1.0, 2 * poll_seconds))
    told = False
    while True:
        chain = leasefiles.chain_of(path)
        if not chain or watch.is_over(chain[-1]):
            yield chain
            time.sleep(RETRY_SECONDS)
            continue
        if not told:
            on_wait(chain[-1])
            told = True
        time.sleep(poll_seconds)


def _take(
    chain: leasefiles.Chain, lease: Lease, stop: threading.Event, heartbeat_seconds: float
) -> bool:
    """Try to follow the last of `chain`; on success a thread beats until `stop` is set."""
    with leasefiles.own_file(lease.path, lease.token) as (file, handle):
        # An object, for it can be closed twice: here, and by the thread.
        beating = os.fdopen(handle, "r+b", buffering=0)
        try:
            if leasefiles.follow(lease.path, chain, file, lease.token):
                arguments = (lease, beating, stop, heartbeat_seconds)
                threading.Thread(target=_beat, args=arguments, daemon=True).start()
                return True
        except BaseException:
            stop.set()
            beating.close()
            raise
        beating.close()
        return False


def _beat(lease: Lease, file: FileIO, stop: threading.Event, heartbeat_seconds: float) -> None:
    beat = 0
    with file:
        while not stop.wait(heartbeat_seconds):
            beat += 1
            try:
                leasefiles.write_beat(file.fileno(), beat)
                lost = lease.is_lost()
            except OSError:
                # To observers a disk that fails is silence; the next beat tries again.
                continue
            # Given back meanwhile is not lost.
            if lost and not stop.is_set():
                lease.lost = True
                return


def _unusable(path: Path, error: OSError) -> StoreError:
    if error.errno in NO_LINKS:
        return StoreError(
            f"{path.parent}: its file system makes no hard links, by which processes agree on who "
            "computes what; set store.root or FTSUITE_STORE to a folder on another"
        )
    return jsonfile.unwritable(str(path.parent), error, "store.root or FTSUITE_STORE")
