"""The files of a lease, and the steps by which it changes hands; `leases` says why.

Nothing but the atomic operations of POSIX and NFS is needed: no daemon, no flock.

**Taking.** A whole file is written under another name and linked to `<path>.lease`: a link fails
where the name exists, on NFS too. Its answer can be lost on NFS, so that a link which succeeded
looks failed; whether both names are one file tells (open(2) on O_EXCL recommends it, by `st_nlink`:
https://man7.org/linux/man-pages/man2/open.2.html).

**Taking over.** Who wants to end the lease with the token X links its own file to
`<path>.lease.X.1` first. One observer alone can, and only that one replaces `<path>.lease` by its
own file. Should it die between the two, the next one links `<path>.lease.X.2`, and so on: the last
of this chain is the holder. A holder that gives its lease back does the same with its own file. So
no process removes a lease other than the one it looked at, and a takeover leaves no moment in which
there is none.

**Beating.** The beat is written into the open file, never by path: where the lease was taken over,
the write goes to a file that nobody reads any more.
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from ftsuite import jsonfile
from ftsuite.store.holders import Holder, this_process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEAT_DIGITS = 12
BEAT_OFFSET = len('{"beat": ')
"""Where the beat stands in the file, always `BEAT_DIGITS` wide: it is written over in place."""

Chain = list[Holder]
"""The holder of the lease's file, and those that follow it; the last one holds the lease."""


def chain_of(path: Path) -> Chain:
    """Who holds the lease on `path`: empty where nobody does."""
    first = _read(_lease_file(path))
    if first is None:
        return []
    chain = [first]
    while following := _read(_claim(path, first.token, len(chain))):
        chain.append(following)
    return chain


def last_file(path: Path, chain: Chain) -> Path:
    """The file of the last of `chain`."""
    if len(chain) == 1:
        return _lease_file(path)
    return _claim(path, chain[0].token, len(chain) - 1)


@contextmanager
def own_file(path: Path, token: str) -> Iterator[tuple[Path, int]]:
    """A file that says that this process holds the lease, under a name of its own for a while.

    Yields:
        The file, and an open handle to it, which the caller closes.
    """
    file = path.with_name(f"{path.name}.lease.{token}")
    handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
    try:
        rest = {
            name: value for name, value in asdict(this_process(token)).items() if name != "beat"
        }
        text = f'{{"beat": {0:>{BEAT_DIGITS}}, {json.dumps(rest)[1:]}\n'
        os.write(handle, text.encode())
        os.fsync(handle)
        yield file, handle
    finally:
        file.unlink(missing_ok=True)


def write_beat(handle: int, beat: int) -> None:
    """Write the number `beat` into the open file of a lease."""
    os.pwrite(handle, f"{beat:>{BEAT_DIGITS}}".encode(), BEAT_OFFSET)
    # The data alone, where the system can: no change of the file's size has to be recorded.
    getattr(os, "fdatasync", os.fsync)(handle)


def follow(path: Path, chain: Chain, mine: Path, token: str) -> bool:
    """Try to make `mine`, which says `token`, the lease on `path`, after `chain` as it was seen.

    Returns:
        False where another process was faster.
    """
    if not chain:
        return _link(mine, _lease_file(path))
    claim = _claim(path, chain[0].token, len(chain))
    if not _link(mine, claim):
        return False
    now = chain_of(path)
    if not now or now[0].token != chain[0].token:
        # The chain had ended before the link: the claim is to a lease that is no more.
        claim.unlink(missing_ok=True)
        return False
    if now[-1].token != token:
        # This process stood still, and another has followed it already.
        return False
    os.replace(mine, _lease_file(path))
    for number in range(1, len(chain) + 1):
        _claim(path, chain[0].token, number).unlink(missing_ok=True)
    return True


def give_back(path: Path, token: str) -> None:
    """Remove the lease on `path` if it is still the one with `token`; else do nothing."""
    chain = chain_of(path)
    if len(chain) > 1 and chain[-1].token == token != chain[0].token:
        # Interrupted while it took over.
        last_file(path, chain).unlink(missing_ok=True)
    if not chain or chain[0].token != token:
        return
    # A link and no new file: the disk may be full.
    lease, claim = _lease_file(path), _claim(path, token, 1)
    if not _link(lease, claim):
        return
    found = _read(claim)
    if found is not None and found.token == token:
        lease.unlink(missing_ok=True)
    claim.unlink(missing_ok=True)


def _lease_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.lease")


def _claim(path: Path, token: str, number: int) -> Path:
    """Where the `number`th process that follows the lease `token` says so."""
    return path.with_name(f"{path.name}.lease.{token}.{number}")


def _read(file: Path) -> Holder | None:
    try:
        content = file.read_bytes()
    except OSError as error:
        # ESTALE: replaced between two steps of the reading, on NFS.
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        # Of another version, or cut short by a crash of the machine: then nobody beats in it, and
        # it lapses.
        nobody = jsonfile.digest(content.hex())[:32]
        return Holder(
            token=nobody, host="?", boot="?", pid_namespace="?", pid=0, process_start=0, started="?"
        )


def _link(source: Path, target: Path) -> bool:
    """Link `source` to the new name `target`; False where that exists, or `source` does not."""
    try:
        os.link(source, target)
    except (FileExistsError, FileNotFoundError):
        try:
            return source.samefile(target)
        except FileNotFoundError:
            return False
    return True
