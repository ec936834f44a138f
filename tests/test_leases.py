"""Leases between real processes, which are killed, stopped and played on several hosts.

Processes are forked from this one, so that many of them cost little.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite.errors import StoreError, one_line
from ftsuite.store import holders, leases
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import StageSpec, lookup, verify
from ftsuite.store.holders import HOST_VARIABLE, this_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FAST = {"heartbeat_seconds": 0.1, "lapse_seconds": 1.0, "poll_seconds": 0.02}
"""Ten beats to a lapse, so that a busy machine does not make a holder look dead."""


@pytest.fixture(autouse=True)
def children() -> Iterator[list[int]]:
    """Processes that a test has forked; none outlives it."""
    yield FORKED
    while FORKED:
        end(FORKED[-1])


FORKED: list[int] = []


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a process of its own; its exit code is 0 unless it raises."""
    pid = os.fork()
    if pid:
        FORKED.append(pid)
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def join(pid: int) -> int:
    """Exit code of a child that ends by itself; minus the signal that killed it."""
    _, status = os.waitpid(pid, 0)
    FORKED.remove(pid)
    return os.waitstatus_to_exitcode(status)


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    join(pid)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # a process of several threads may run on for an instant


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hold(path: Path, sign: Path, until: Path, **fields: Any) -> Callable[[], None]:
    """Work of a process that holds `path` from when it makes `sign` until somebody makes `until`.

    It leaves in `sign` whether it found its lease lost.
    """

    def work() -> None:
        with leases.held(path, **(FAST | fields)) as lease:
            sign.touch()
            wait_for(until)
            # As often as a slow machine needs to beat once.
            for _ in range(20):
                time.sleep(0.05)
            sign.write_text(str(lease.lost))

    return work


def lease_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*.lease*"))


def write_lease(path: Path, **fields: Any) -> None:
    """A lease as another process would have left it."""
    me = this_process("f" * 32)
    plain = {name: getattr(me, name) for name in me.__dataclass_fields__}
    path.with_name(f"{path.name}.lease").write_text(json.dumps(plain | fields))


# --- one process at a time ------------------------------------------------------------------


def test_a_lease_says_who_holds_it_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x"
    assert leases.holder(path) is None
    with leases.held(path) as lease:
        found = leases.holder(path)
        assert found is not None and found.pid == os.getpid() and found.token == lease.token
        assert not lease.is_lost()
    assert leases.holder(path) is None
    assert not list(path.parent.iterdir())


def test_a_lease_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), leases.held(tmp_path / "x"):
        raise ValueError("inside")
    assert not list(tmp_path.iterdir())


def enter(critical: Path) -> None:
    """Enter the critical section; only a process that died in it may still be there."""
    try:
        handle = os.open(critical, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        before = int(critical.read_text())
        assert holders._process_start(before) in (None, -1.0), f"{before} is still inside"
        critical.unlink()
        handle = os.open(critical, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    os.write(handle, str(os.getpid()).encode())
    os.close(handle)


@pytest.mark.parametrize("death", [0.0, 0.2])
def test_eight_processes_hold_it_one_at_a_time(tmp_path: Path, death: float) -> None:
    """Some die while they hold it; then seven want to take it over at once."""
    critical, log = tmp_path / "critical", tmp_path / "log"

    def work(seed: int) -> None:
        luck = random.Random(seed)
        for _ in range(12):
            with leases.held(tmp_path / "x", poll_seconds=0.002):
                enter(critical)
                time.sleep(luck.random() * 0.004)
                if luck.random() < death:
                    die()
                with log.open("a") as file:
                    file.write(".")
                critical.unlink()

    codes = [join(pid) for pid in [fork(partial(work, seed)) for seed in range(8)]]
    died = codes.count(-signal.SIGKILL)
    assert codes.count(0) == 8 - died
    assert (died > 3) == (death > 0)
    assert death or len(log.read_text()) == 8 * 12
    with leases.held(tmp_path / "x", on_wait=pytest.fail):
        enter(critical)
    assert lease_files(tmp_path) == []


def test_a_holder_that_beats_keeps_it_and_who_waits_is_told_once(tmp_path: Path) -> None:
    path, sign, until = tmp_path / "x", tmp_path / "sign", tmp_path / "until"
    pid = fork(hold(path, sign, until))
    wait_for(sign)
    told: list[int] = []

    def on_wait(holder: holders.Holder) -> None:
        told.append(holder.pid)

    def release() -> None:
        time.sleep(2.5)  # two lapses and a half
        until.touch()

    other = fork(release)
    with leases.held(path, on_wait=on_wait, **FAST):
        assert sign.read_text() == "False"
    assert told == [pid]
    assert (join(pid), join(other)) == (0, 0)


def test_a_forked_child_neither_holds_it_nor_gives_it_back(tmp_path: Path) -> None:
    path = tmp_path / "x"
    manager = leases.held(path)
    with manager:
        assert join(fork(lambda: bool(manager.__exit__(None, None, None)) and None)) == 0
        found = leases.holder(path)
        assert found is not None and found.pid == os.getpid()
    assert leases.holder(path) is None


# --- death at any moment --------------------------------------------------------------------


def test_a_killed_holders_lease_is_taken_over_at_once(tmp_path: Path) -> None:
    path, sign = tmp_path / "x", tmp_path / "sign"
    pid = fork(hold(path, sign, tmp_path / "never"))
    wait_for(sign)
    assert leases.holder(path) is not None
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    # Also while nobody has waited for it yet: a process that is a mere entry of the kernel's table.
    assert leases.holder(path) is None
    with leases.held(path, on_wait=pytest.fail):
        pass
    join(pid)


STEPS = ("open", "write", "fsync", "link", "replace", "unlink", "close")


def at_step(number: int, strike: Callable[[], None], *, after: bool) -> pytest.MonkeyPatch:
    """Strike before or after the `number`th call to the system that a lease makes."""
    patch, calls = pytest.MonkeyPatch(), [0]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == number and not after:
                strike()
            try:
                return real(*args, **kwargs)
            finally:
                if calls[0] == number and after:
                    strike()

        return call

    for name in STEPS:
        patch.setattr(os, name, counted(getattr(os, name)))
    return patch


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("left", ["free", "dead", "dead while it took over"])
def test_killed_at_any_step_it_is_in_nobodys_way(tmp_path: Path, left: str, after: bool) -> None:
    path, done = tmp_path / "x", tmp_path / "done"
    gone = fork(lambda: None)
    join(gone)

    def work(number: int) -> None:
        at_step(number, die, after=after)
        with leases.held(path):
            pass
        done.touch()

    for number in range(1, 40):
        if left != "free":
            write_lease(path, pid=gone)
        if left == "dead while it took over":
            write_lease(tmp_path / "claim", pid=gone, token="e" * 32)
            os.rename(tmp_path / "claim.lease", tmp_path / f"x.lease.{'f' * 32}.1")
        join(fork(partial(work, number)))
        assert leases.holder(path) is None
        with leases.held(path, on_wait=pytest.fail):
            assert leases.holder(path) is not None
        assert not (tmp_path / "x.lease").exists()
        for litter in tmp_path.glob("x.lease.*"):
            litter.unlink()
        if done.exists():
            break
    assert done.exists() and number > 8


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("left", ["free", "dead"])
def test_interrupted_at_any_step_it_is_free_again(tmp_path: Path, left: str, after: bool) -> None:
    """The process lives on, so nobody could tell that it does not hold what it left behind."""
    path = tmp_path / "x"

    def interrupt() -> None:
        raise KeyboardInterrupt

    for number in range(1, 40):
        if left == "dead":
            write_lease(path, process_start=0, token=f"{number:032x}")
        patch = at_step(number, interrupt, after=after)
        entered = False
        try:
            with leases.held(path):
                entered = True
                patch.undo()
            break
        except KeyboardInterrupt:
            assert not entered
        finally:
            patch.undo()
        with leases.held(path, on_wait=pytest.fail):
            pass
    assert number > 4


# --- a holder that stands still -------------------------------------------------------------


def test_a_stopped_holder_loses_it_and_notices(tmp_path: Path) -> None:
    path, sign, until = tmp_path / "x", tmp_path / "sign", tmp_path / "until"
    pid = fork(hold(path, sign, until))
    wait_for(sign)
    os.kill(pid, signal.SIGSTOP)
    with leases.held(path, **FAST) as mine:
        os.kill(pid, signal.SIGCONT)
        until.touch()
        assert join(pid) == 0
        assert sign.read_text() == "True"
        # What it gave back was not this lease.
        assert not mine.is_lost() and leases.holder(path) is not None
    assert lease_files(tmp_path) == []


def test_who_was_stopped_itself_has_not_seen_a_lapse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when both are suspended together, and the observer wakes first."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = leases._Watch(60.0, step_seconds=1.0)
    holder = holders.Holder(
        token="a", host="b", boot="", pid_namespace="", pid=1, process_start=0, started=""
    )
    assert not watch.is_over(holder)
    now[0] = 3600.0
    assert not watch.is_over(holder)
    for _ in range(58):
        now[0] += 1.0
        assert not watch.is_over(holder)
    now[0] += 1.0
    assert watch.is_over(holder)


# --- what is known of a holder --------------------------------------------------------------

ELSEWHERE = [{"host": "other"}, {"boot": "other"}, {"pid_namespace": "other"}]
"""What two processes can have in common and yet not see each other: containers, cloned machines."""


@pytest.mark.parametrize("fields", ELSEWHERE)
def test_a_process_number_counts_within_its_host_and_namespace_alone(
    tmp_path: Path, fields: dict[str, str]
) -> None:
    path = tmp_path / "x"
    gone = fork(lambda: None)
    join(gone)
    write_lease(path, pid=gone, **fields)
    assert leases.holder(path) is not None
    told: list[holders.Holder] = []
    with leases.held(path, on_wait=told.append, **FAST):
        pass
    assert [holder.pid for holder in told] == [gone]


def test_a_process_number_that_is_anothers_now_holds_nothing(tmp_path: Path) -> None:
    write_lease(tmp_path / "x", process_start=this_process("").process_start - 1)
    assert leases.holder(tmp_path / "x") is None
    with leases.held(tmp_path / "x", on_wait=pytest.fail):
        pass


def test_one_look_believes_another_host_until_it_has_long_been_silent(tmp_path: Path) -> None:
    path, file = tmp_path / "x", tmp_path / "x.lease"
    write_lease(path, host="other")
    beat = time.time() - leases.SILENCE_SECONDS
    os.utime(file, (beat + 60, beat + 60))
    assert leases.holder(path) is not None
    os.utime(file, (beat - 60, beat - 60))
    assert leases.holder(path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": "a"}', "\x00" * 200])
def test_a_lease_that_cannot_be_read_lapses(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.lease").write_text(content)
    assert leases.holder(tmp_path / "x") is not None
    with leases.held(tmp_path / "x", **FAST):
        pass
    assert lease_files(tmp_path) == []


def test_a_beat_leaves_a_file_that_can_be_read(tmp_path: Path) -> None:
    with leases.held(tmp_path / "x", **FAST):
        deadline = time.monotonic() + 60
        while (found := leases.holder(tmp_path / "x")) is None or found.beat < 12:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_file_system_without_links_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match="hard links") as caught, leases.held(tmp_path / "x"):
        pass
    assert str(tmp_path) in one_line(caught.value) and "store.root" in one_line(caught.value)
    assert not list(tmp_path.iterdir())


READER = """
import sys
from pathlib import Path
from ftsuite.store import leases
for name in sys.argv[2:]:
    leases.wait(Path(sys.argv[1]) / name)
    print(leases.holder(Path(sys.argv[1]) / name))
"""


def test_a_store_that_may_only_be_read_is_read(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    write_lease(store / "dead", process_start=0)
    mount = f'mount --bind {store} {store} && mount -o remount,bind,ro {store} && exec "$@"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine gives no mount namespaces to users")
    command = [*inside, sys.executable, "-c", READER, str(store), "free", "dead"]
    assert subprocess.check_output(command, text=True) == "None\nNone\n"


# --- the store ------------------------------------------------------------------------------


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of the store beat and lapse fast, here and in what is forked from here."""
    monkeypatch.setattr(leases, "held", partial(leases.held, **FAST))


def text_spec(number: int, compute: Callable[[Path], str], *, resumable: bool) -> StageSpec[str]:
    return StageSpec(
        name="text",
        version=1,
        inputs={"number": number},
        record=str,
        compute=compute,
        resumable=resumable,
    )


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("resumable", [False, True])
@pytest.mark.parametrize("more", ["nothing", "a file", "a folder"])
def test_a_stage_that_was_stopped_ends_with_the_winners_entry(
    tmp_path: Path, resumable: bool, more: str
) -> None:
    """It wakes while the winner computes, and has the rest of its work to write."""
    store, begun, until, said = (tmp_path / n for n in ("store", "begun", "until", "said"))

    def slow(folder: Path) -> str:
        (folder / "a").write_text("loser")
        begun.touch()
        wait_for(until)
        if more == "a file":
            (folder / "b").write_text("loser")
        if more == "a folder":
            (folder / "c").mkdir(parents=True, exist_ok=True)
            (folder / "c" / "d").write_text("loser")
        return "loser"

    def work() -> None:
        entry = run_stage(store, text_spec(1, slow, resumable=resumable))
        said.write_text(f"{entry.record} {entry.reused}")

    pid = fork(work)
    wait_for(begun)
    os.kill(pid, signal.SIGSTOP)

    def quick(folder: Path) -> str:
        os.kill(pid, signal.SIGCONT)
        until.touch()
        time.sleep(0.5)
        (folder / "a").write_text("winner")
        return "winner"

    entry = run_stage(store, text_spec(1, quick, resumable=resumable))
    assert (entry.record, entry.reused) == ("winner", False)
    assert join(pid) == 0
    assert said.read_text() == "winner True"
    verify(entry.folder)
    assert (entry.folder / "a").read_text() == "winner"
    assert [path.name for path in store.glob("text/*")] == [entry.folder.name]


KEYS, KILLS = 40, 36


@pytest.mark.usefixtures("fast")
def test_two_hosts_and_kills_end_with_every_entry_whole(tmp_path: Path) -> None:
    """Two processes that cannot see each other compute the same keys, and are often killed."""
    luck = random.Random(0)

    def spec(number: int) -> StageSpec[str]:
        def compute(folder: Path) -> str:
            for part in range(4):
                (folder / f"{part}").write_text(f"{number} {part}" * 100)
                time.sleep(0.004)
            return f"text {number}"

        return text_spec(number, compute, resumable=number % 2 == 0)

    def work(host: str, seed: int) -> None:
        os.environ[HOST_VARIABLE] = host
        # Each in an order of its own, so that they meet.
        for number in random.Random(seed).sample(range(KEYS), KEYS):
            assert run_stage(tmp_path, spec(number)).record == f"text {number}"

    running = {host: fork(partial(work, host, n)) for n, host in enumerate(("a", "b"))}
    killed = 0
    for attempt in range(1000):
        time.sleep(luck.random() * 0.1)
        host = luck.choice("ab")
        os.kill(running[host], signal.SIGKILL)
        code = join(running[host])
        assert code in (0, -signal.SIGKILL)
        if code == 0 and killed < KILLS:
            # All is computed, so begin anew.
            for entry in tmp_path.glob("text/*"):
                if "." not in entry.name and luck.random() < 0.7:
                    os.rename(entry, tmp_path / f"{entry.name}.{attempt}")
        killed += code != 0
        if killed >= KILLS:
            break
        running[host] = fork(partial(work, host, attempt))
    assert killed >= KILLS
    assert [join(fork(partial(work, host, 7))) for host in "ab"] == [0, 0]
    for number in range(KEYS):
        found = lookup(tmp_path, spec(number))
        assert found is not None and found.record == f"text {number}"
        verify(found.folder)
        for part in range(4):
            assert (found.folder / f"{part}").read_text() == f"{number} {part}" * 100
