from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite.errors import StageError, StoreError, one_line
from ftsuite.store import commit
from ftsuite.store import entries as store
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import StageSpec, lookup, verify

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    value: int
    text: str = "ä"


def write_and_answer(folder: Path) -> Answer:
    (folder / "weights.bin").write_bytes(bytes(range(256)) * 8)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "inputs.json").write_text("{}")
    return Answer(value=42)


def spec(compute: Callable[[Path], Answer] = write_and_answer, **changes: Any) -> StageSpec[Answer]:
    fields: dict[str, Any] = {
        "name": "answer",
        "version": 1,
        "inputs": {"model": {"id": "a", "revision": "b"}, "rank": 4},
        "record": Answer,
        "compute": compute,
    }
    return StageSpec(**(fields | changes))


def refuse(_: Path) -> Answer:
    raise AssertionError("computed twice")


# A process of its own that runs one spec; what `compute` does comes from the test.
PROCESS = """
import os, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import StageSpec

@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    value: int
    text: str = "ä"

def compute(folder):
{body}

root = Path(sys.argv[1])
spec = StageSpec(name="answer", version=1,
    inputs={{"model": {{"id": "a", "revision": "b"}}, "rank": 4}},
    record=Answer, compute=compute, resumable={resumable})
entry = run_stage(root, spec, on_wait=lambda name: print("waiting for", name))
print(entry.record.value, entry.reused)
"""


def start(root: Path, body: str, *, resumable: bool = False) -> subprocess.Popen[str]:
    indented = "\n".join("    " + line for line in body.strip().splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS.format(body=indented, resumable=resumable), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(pattern: str, process: subprocess.Popen[str]) -> Path:
    deadline = time.monotonic() + 60
    while not (found := glob(pattern)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    return Path(found[0])


# --- identity -------------------------------------------------------------------------------


def test_key_changes_with_name_version_and_every_input() -> None:
    same = spec()
    others = [
        spec(name="question"),
        spec(version=2),
        spec(inputs={"model": {"id": "a", "revision": "c"}, "rank": 4}),
        spec(inputs={"model": {"id": "a", "revision": "b"}, "rank": 8}),
        spec(inputs={"model": {"id": "a", "revision": "b"}, "rank": 4, "alpha": None}),
        spec(inputs={"model": {"id": "a", "revision": "b"}, "rank": "4"}),
    ]
    keys = {one.key for one in [same, *others]}
    assert len(keys) == 1 + len(others)


def test_key_does_not_change_with_dict_order_or_how_it_is_computed() -> None:
    turned = spec(refuse, inputs={"rank": 4, "model": {"revision": "b", "id": "a"}}, resumable=True)
    assert turned.key == spec().key
    assert len(spec().key) == 64


def test_key_refuses_values_that_json_cannot_tell_apart() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        _ = spec(inputs={"rate": float("nan")}).key


# --- one computation ------------------------------------------------------------------------


def test_second_call_reads_what_the_first_stored(tmp_path: Path) -> None:
    first = run_stage(tmp_path, spec())
    second = run_stage(tmp_path, spec(refuse))
    assert (first.reused, second.reused) == (False, True)
    assert first.record == second.record == Answer(value=42)
    assert replace(first, reused=True) == second
    assert (second.folder / "weights.bin").stat().st_size == 2048
    assert second.peak_memory_bytes > 1_000_000
    verify(second.folder)


def test_a_file_that_shares_a_name_with_the_stores_own_is_listed(tmp_path: Path) -> None:
    entry = run_stage(tmp_path, spec())
    files = json.loads((entry.folder / "result.json").read_text())["files"]
    assert sorted(files) == ["sub/inputs.json", "weights.bin"]


def test_processes_at_once_compute_once(tmp_path: Path) -> None:
    body = f"""
with open({str(tmp_path / "log")!r}, "a") as log: log.write(f"{{os.getpid()}}\\n")
time.sleep(0.5)
return Answer(value=7)
"""
    processes = [start(tmp_path / "store", body) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len((tmp_path / "log").read_text().split()) == 1
    last = [output.splitlines()[-1] for output in outputs]
    assert sorted(last) == ["7 False", "7 True", "7 True", "7 True"]


def test_who_waits_is_told(tmp_path: Path) -> None:
    body = f"Path({str(tmp_path / 'begun')!r}).touch(); time.sleep(0.6); return Answer(value=7)"
    process = start(tmp_path / "store", body)
    wait_for(str(tmp_path / "begun"), process)
    told: list[str] = []
    entry = run_stage(tmp_path / "store", spec(refuse), on_wait=told.append)
    assert told == ["answer"] and entry.reused
    process.communicate(timeout=30)


def test_compute_that_raises_leaves_nothing_and_the_next_call_computes(tmp_path: Path) -> None:
    def fail(folder: Path) -> Answer:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stage(tmp_path, spec(fail))
    assert lookup(tmp_path, spec()) is None
    assert not list(tmp_path.glob("answer/*"))
    assert not run_stage(tmp_path, spec()).reused


# --- kill -9 --------------------------------------------------------------------------------

HALF = """
(folder / "half").write_text("half")
time.sleep(60)
"""


@pytest.mark.parametrize("resumable", [False, True])
def test_killed_compute_leaves_no_result(tmp_path: Path, resumable: bool) -> None:
    folder = store.folder_of(tmp_path, "answer", spec().key)
    process = start(tmp_path, HALF, resumable=resumable)
    half = wait_for(f"{folder}.partial-*/half", process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert half.exists() and not folder.exists()
    assert lookup(tmp_path, spec()) is None
    seen: list[bool] = []

    def compute(partial: Path) -> Answer:
        seen.append((partial / "half").exists())
        return write_and_answer(partial)

    # At once: the holder was of this host, and is gone.
    assert not run_stage(tmp_path, spec(compute, resumable=resumable)).reused
    assert seen == [resumable]
    verify(run_stage(tmp_path, spec(refuse)).folder)


@pytest.mark.parametrize("resumable", [False, True])
def test_kill_between_result_and_rename_leaves_no_result(tmp_path: Path, resumable: bool) -> None:
    body = """
(folder / "weights.bin").write_bytes(b"12")
os.rename = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
return Answer(value=1)
"""
    process = start(tmp_path, body, resumable=resumable)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert len(list(tmp_path.glob("answer/*.partial-*/result.json"))) == 1
    assert lookup(tmp_path, spec()) is None
    entry = run_stage(tmp_path, spec(resumable=resumable))
    assert entry.record.value == 42
    verify(entry.folder)


# --- the folder of work in progress ---------------------------------------------------------


def left_behind(root: Path, name: str, age_seconds: float) -> None:
    """A partial folder of the spec, as a killed process leaves it."""
    folder = store.folder_of(root, "answer", spec().key)
    partial = folder.with_name(f"{folder.name}.{name}")
    partial.mkdir(parents=True)
    (partial / "half").write_text(name)
    changed = time.time() - age_seconds
    os.utime(partial / "half", (changed, changed))
    os.utime(partial, (changed - 100, changed - 100))


@pytest.mark.parametrize("resumable", [False, True])
def test_the_newest_folder_left_behind_is_gone_on_with_and_all_others_go(
    tmp_path: Path, resumable: bool
) -> None:
    left_behind(tmp_path, "partial-aaaaaaaa", 30)
    left_behind(tmp_path, "partial", 10)  # as versions before leases named it
    left_behind(tmp_path, "partial-bbbbbbbb", 20)
    seen: list[str] = []

    def compute(partial: Path) -> Answer:
        seen.extend(path.name for path in tmp_path.glob("answer/*/"))
        seen.extend(path.read_text() for path in partial.glob("half"))
        return write_and_answer(partial)

    entry = run_stage(tmp_path, spec(compute, resumable=resumable))
    assert seen[1:] == (["partial"] if resumable else [])
    assert seen[0].startswith(f"{entry.folder.name}.partial-")
    assert [path.name for path in tmp_path.glob("answer/*")] == [entry.folder.name]


def test_a_folder_left_behind_by_another_key_is_left_alone(tmp_path: Path) -> None:
    left_behind(tmp_path, "partial-aaaaaaaa", 30)
    run_stage(tmp_path, spec(version=2))
    assert len(list(tmp_path.glob("answer/*.partial-aaaaaaaa/half"))) == 1


@pytest.mark.parametrize("resumable", [False, True])
def test_the_second_finisher_takes_the_winners_entry(tmp_path: Path, resumable: bool) -> None:
    """Its lease was removed while it computed, as no other process does; the winner is done."""
    winners: list[store.Entry[Answer]] = []

    def compute(partial: Path) -> Answer:
        write_and_answer(partial)
        (lease,) = tmp_path.glob("answer/*.lease")
        lease.unlink()
        os.rename(partial, tmp_path / "hidden")
        winners.append(run_stage(tmp_path, spec()))
        os.rename(tmp_path / "hidden", partial)
        return Answer(value=43)

    second = run_stage(tmp_path, spec(compute, resumable=resumable))
    assert second == replace(winners[0], reused=True)
    assert second.record.value == 42
    verify(second.folder)
    assert [path.name for path in tmp_path.glob("answer/*")] == [second.folder.name]


def test_a_stage_whose_folder_was_taken_computes_again(tmp_path: Path) -> None:
    """The lease was lost and the folder taken, but whoever took them has failed."""
    calls: list[int] = []

    def compute(partial: Path) -> Answer:
        calls.append(1)
        if len(calls) == 1:
            (lease,) = tmp_path.glob("answer/*.lease")
            lease.unlink()
            os.rename(partial, tmp_path / "taken")
        return write_and_answer(partial)

    entry = run_stage(tmp_path, spec(compute))
    assert (len(calls), entry.reused, entry.record.value) == (2, False, 42)
    verify(entry.folder)


# --- a damaged entry ------------------------------------------------------------------------


def flipped(content: bytes, place: int, bit: int) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    match how:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            middle = len(content) // 2
            path.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("name", ["weights.bin", "sub/inputs.json", "inputs.json", "result.json"])
def test_damaged_file_is_an_error_with_folder_and_remedy(
    tmp_path: Path, name: str, how: str
) -> None:
    entry = run_stage(tmp_path, spec())
    damage(entry.folder / name, how)
    with pytest.raises(StoreError) as caught:
        found = run_stage(tmp_path, spec(refuse))
        assert how == "flipped"  # sizes are right, so only the sha256 tells
        verify(found.folder)
    message = one_line(caught.value)
    assert str(entry.folder) in message
    assert "delete the folder and run again" in message
    assert name in message or "inputs.json" in message


def test_every_flipped_byte_of_the_result_is_found_or_harmless(tmp_path: Path) -> None:
    """Harmless: white space. Seconds, memory and the files' own digests are under the checksum."""
    entry = run_stage(tmp_path, spec())
    path = entry.folder / "result.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(flipped(content, place, 4))
        try:
            found = run_stage(tmp_path, spec(refuse))
            verify(found.folder)
        except StoreError:
            continue
        assert found == replace(entry, reused=True)
        assert content[place] in b" \n"
    path.write_bytes(content)
    verify(run_stage(tmp_path, spec(refuse)).folder)


def test_changed_record_is_found_by_its_checksum(tmp_path: Path) -> None:
    entry = run_stage(tmp_path, spec())
    path = entry.folder / "result.json"
    path.write_text(path.read_text().replace('"value": 42', '"value": 43'))
    with pytest.raises(StoreError, match=r"result\.json does not have the checksum"):
        lookup(tmp_path, spec())


def test_inputs_that_differ_name_the_field(tmp_path: Path) -> None:
    entry = run_stage(tmp_path, spec())
    path = entry.folder / "inputs.json"
    inputs = json.loads(path.read_text())
    path.write_text(json.dumps(inputs | {"rank": 8, "alpha": 1}))
    with pytest.raises(StoreError, match=r"inputs\.json differs from the key's in alpha, rank;"):
        run_stage(tmp_path, spec(refuse))


def test_record_of_another_type_is_an_error(tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Other:
        name: str

    run_stage(tmp_path, spec())
    with pytest.raises(StoreError, match="not a Other"):
        lookup(tmp_path, spec(record=Other))


@pytest.mark.parametrize("field", ["seconds", "peak_memory_bytes", "peak_device_bytes"])
def test_what_a_result_cost_is_under_the_checksum(tmp_path: Path, field: str) -> None:
    entry = run_stage(tmp_path, spec())
    path = entry.folder / "result.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(plain | {field: 1}))
    with pytest.raises(StoreError, match=r"result\.json does not have the checksum"):
        lookup(tmp_path, spec())


def test_entry_of_another_layout_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(tmp_path, spec())
    monkeypatch.setattr(store, "LAYOUT", store.LAYOUT + 1)
    assert lookup(tmp_path, spec()) is None


# --- secrets --------------------------------------------------------------------------------


def test_secret_in_the_inputs_is_refused_and_one_in_the_record_redacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    with pytest.raises(StoreError, match="hold the value of HF_TOKEN") as caught:
        run_stage(tmp_path, spec(refuse, inputs={"probe": {"text": "say hf_secretsecret now"}}))
    assert "hf_secretsecret" not in one_line(caught.value)
    assert not [path for path in tmp_path.rglob("*.json")]

    def leak(_: Path) -> Answer:
        return Answer(value=1, text="my token is hf_secretsecret")

    entry = run_stage(tmp_path, spec(leak))
    assert entry.record.text == "my token is <HF_TOKEN>"
    assert "hf_secretsecret" not in (entry.folder / "result.json").read_text()
    monkeypatch.delenv("HF_TOKEN")
    assert run_stage(tmp_path, spec(refuse)).record == entry.record


# --- a folder that cannot be written --------------------------------------------------------


def test_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "store"):
        for call in (
            lambda folder=folder: commit.require_writable(folder, "store.root"),
            lambda folder=folder: run_stage(folder, spec(refuse)),
        ):
            with pytest.raises(StoreError) as caught:
                call()
            message = one_line(caught.value)
            assert "store.root" in message and "FTSUITE_STORE" in message
            assert str(folder) in message and "cannot be written" in message


def test_writable_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    commit.require_writable(tmp_path / "a" / "b", "store.reports")
    assert not list((tmp_path / "a" / "b").iterdir())


# --- a full disk ----------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_full_disk_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    def fill(folder: Path) -> Answer:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(b"x")
        return Answer(value=0)

    with pytest.raises(StageError) as caught:
        run_stage(tmp_path, spec(fill))
    message = one_line(caught.value)
    assert "no space left" in message and str(tmp_path) in message and "FTSUITE_STORE" in message
    assert lookup(tmp_path, spec()) is None
    assert run_stage(tmp_path, spec()).record.value == 42


FULL = """
import sys
from pathlib import Path
from ftsuite.errors import StageError
from ftsuite.store.commit import run_stage
from ftsuite.store.entries import StageSpec

def compute(folder):
    (folder / "weights.bin").write_bytes(bytes(100_000))
    return "done"

root = Path(sys.argv[1])
for name in ("small", "large"):
    spec = StageSpec(name=name, version=1, inputs={}, record=str, compute=compute)
    try:
        print(run_stage(root, spec).record)
    except StageError as error:
        print("StageError", error, [path.name for path in root.glob("large/*/")])
"""


def test_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 160 kB, in a mount namespace of its own."""
    mount = f'mount -t tmpfs -o size=160k tmpfs {tmp_path} && exec "$@"'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    try:
        subprocess.run([*inside, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine gives no mount namespaces to users")
    command = [*inside, sys.executable, "-c", FULL, str(tmp_path)]
    first, second = subprocess.check_output(command, text=True).splitlines()
    assert first == "done"
    assert second.startswith("StageError no space left on the disk of ")
    assert second.endswith("[]")


def test_full_disk_inside_a_librarys_own_error(tmp_path: Path) -> None:
    def fill(_: Path) -> Answer:
        raise RuntimeError(f"SafetensorError: I/O: {os.strerror(errno.ENOSPC)} (os error 28)")

    with pytest.raises(StageError, match="no space left"):
        run_stage(tmp_path, spec(fill))


def test_other_errors_are_left_alone(tmp_path: Path) -> None:
    def fail(_: Path) -> Answer:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(PermissionError):
        run_stage(tmp_path, spec(fail))


# --- readers --------------------------------------------------------------------------------


def test_readers_never_see_a_folder_without_its_result(tmp_path: Path) -> None:
    stop = threading.Event()
    seen, wrong = set[str](), list[str]()

    def watch() -> None:
        while not stop.is_set():
            for folder in tmp_path.glob("answer/*"):
                if "." in folder.name:  # leases and work in progress
                    continue
                seen.add(folder.name)
                try:
                    files = json.loads((folder / "result.json").read_text())["files"]
                    if any(not (folder / name).exists() for name in files):
                        wrong.append(f"{folder}: a file is missing")
                except (OSError, ValueError) as error:
                    wrong.append(str(error))

    threads = [threading.Thread(target=watch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for rank in range(60):
        run_stage(tmp_path, spec(inputs={"rank": rank}))
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(seen) > 10


def test_store_needs_no_torch() -> None:
    script = (
        "import sys, ftsuite.store.entries, ftsuite.studies.study; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
