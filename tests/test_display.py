"""What is seen while stages run: rates and times left, the lines, and a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len

from ftsuite import display as display_module
from ftsuite.display import Board, display
from ftsuite.events import Source, path_of, read, to_file
from ftsuite.stagelines import amount, clock, curve, details_line, printable, stage_lines
from ftsuite.stagestate import CellCounts, Pace, StageState

if TYPE_CHECKING:
    from ftsuite.events import Event

REPOSITORY = Path(__file__).resolve().parents[1]
SECRET = "hf_verysecretvalue"


def source(place: str = "2/4 lora.r=4", name: str = "train", *more: str) -> Source:
    """A stage; `more` are further cells that need it."""
    run = place.partition("/")[0]
    return Source(
        stage=name.partition("-")[0], key=place + name, name=name, place=place, run_ids=(run, *more)
    )


def state_event(time: float, state: str, **facts: Any) -> Event:
    return {"time": time, "kind": "state", "state": state, **facts}


def progress(time: float, done: int, total: int = 4096, **facts: Any) -> Event:
    facts = {"name": "train", "unit": "tokens", **facts}
    return {"time": time, "kind": "progress", "done": done, "total": total, **facts}


def step(time: float, number: int, loss: float) -> Event:
    facts = {"step": number, "steps": 86, "loss": loss, "learning_rate": 2e-4}
    return {"time": time, "kind": "step", **facts}


def training(place: str = "2/4 lora.r=4", name: str = "train") -> StageState:
    """Half through its tokens at 128 a second, so that 16 s are left."""
    state = StageState(source(place, name))
    for event in (
        state_event(100.0, "started", host="a"),
        progress(101.0, 0, name=name),
        progress(102.0, 1024, name=name),
        step(102.0, 10, 2.5),
        progress(110.0, 2048, name=name),
        step(110.0, 43, 1.234),
    ):
        state.hear(event, now=0.0)
    return state


class Listening:
    """A display without a terminal, and a clock that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(display_module.time, "monotonic", lambda: self.now)
        self.said: list[str] = []
        self.board = Board(CellCounts(total=4), "utf-8", self.said.append)
        self.board.is_plain = True

    def hear(self, *events: Event, of: Source | None = None) -> list[str]:
        """What is said of these events."""
        before = len(self.said)
        for event in events:
            self.board.listen(of or source(), event)
        return self.said[before:]


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Listening:
    return Listening(monkeypatch)


# --- how fast, and how long still ---------------------------------------------------------------


def test_the_rate_is_that_of_the_last_seconds() -> None:
    pace = Pace()
    for second in range(100):
        pace.add(second, 1000 * (second + 1))
    assert pace.rate == pytest.approx(1000)
    for second in range(100, 130):
        pace.add(second, 100_000 + 10 * (second - 99))
    assert pace.rate == pytest.approx(10)


def test_a_step_longer_than_the_stretch_still_has_a_rate() -> None:
    pace = Pace()
    for minute in range(4):
        pace.add(60.0 * minute, 600 * (minute + 1))
    assert pace.rate == pytest.approx(10)


def test_what_a_resumed_stage_counts_in_one_go_is_no_speed() -> None:
    pace = Pace()
    pace.add(0.0, 0)
    pace.add(0.5, 90_000)
    assert pace.rate is None
    pace.add(10.5, 90_100)
    assert pace.rate == pytest.approx(10)


@pytest.mark.parametrize("seconds, done", [(-3600.0, 500), (31.0, 10)])
def test_another_clock_or_a_new_beginning_starts_the_rate_anew(seconds: float, done: int) -> None:
    pace = Pace()
    pace.add(10.0, 100)
    pace.add(30.0, 400)
    pace.add(seconds, done)
    assert pace.rate is None
    pace.add(seconds + 2, done + 40)
    assert pace.rate == pytest.approx(20)


def test_time_left_counts_down_on_the_readers_clock() -> None:
    state = training()
    assert state.left(now=0.0) == pytest.approx(16)
    assert state.left(now=6.0) == pytest.approx(10)
    assert state.left(now=60.0) == 0.0
    state.hear(progress(120.0, 4096), now=20.0)
    assert state.left(now=20.0) is None


def test_loops_of_a_stage_follow_each_other() -> None:
    state = StageState(source(name="eval-tuned arc"))
    state.hear(progress(1.0, 300, 300, name="log-likelihood"), now=0.0)
    # lm-eval asks twice: the same loop begins anew.
    state.hear(progress(2.0, 0, 300, name="log-likelihood"), now=0.0)
    state.hear(progress(3.0, 150, 300, name="log-likelihood"), now=0.0)
    state.hear(progress(4.0, 15, 60, name="generation", unit="answers"), now=0.0)
    assert (state.loop, state.fraction) == ("generation", 0.25)
    assert state.counted() == [(450, "tokens"), (15, "answers")]


def test_a_studys_time_left_needs_a_round_of_cells() -> None:
    counts = CellCounts(total=8, done=2, ended_at=[100.0])
    assert counts.left(elapsed=110.0, side_by_side=1) is None
    counts = CellCounts(total=8, done=2, ended_at=[100.0, 200.0])
    assert counts.left(elapsed=230.0, side_by_side=1) == pytest.approx(570)
    # Four cells that run together end together: two of them say nothing.
    assert counts.left(elapsed=230.0, side_by_side=4) is None
    assert counts.left(elapsed=900.0, side_by_side=1) is None


# --- lines --------------------------------------------------------------------------------------


def test_a_line_has_all_there_is_room_for() -> None:
    (line,) = stage_lines([training()], now=0.0, width=100)
    assert re.fullmatch(
        r"2/4 lora\.r=4 · train  ━{15}─{15}   50 %  128 tokens/s  loss 1\.234  0:16 left",
        line.plain,
    )


def test_a_narrow_terminal_keeps_percent_loss_and_time_left() -> None:
    (line,) = stage_lines([training()], now=0.0, width=60)
    assert line.plain == "2/4 lora.r=4 · train  ━━━━────   50 %  loss 1.234  0:16 left"
    (line,) = stage_lines([training()], now=0.0, width=56)
    assert line.plain == "2/4 lora.r=4 · train   50 %  loss 1.234  0:16 left"
    (line,) = stage_lines([training()], now=0.0, width=40)
    assert line.plain == "2/4 lora.r=4 · train   50 %  0:16 left"


@pytest.mark.parametrize("width", [30, 40, 60, 80, 100, 140])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_line_is_wider_than_the_terminal(width: int, encoding: str) -> None:
    places = [
        "1/8 a",
        "2/8 model.id=an-organisation/a-model-with-a-long-name, lora.r=16",
        "3/8 訓練" * 6,
    ]
    states = [training(place) for place in places]
    states.append(StageState(source("4/8 lora.r=4", "eval-tuned intent_choice_validation")))
    states[-1].note = "another process is computing it; waiting " * 3
    lines = stage_lines(states, 0.0, width, encoding)
    assert len(lines) == 4
    for line in lines:
        assert cell_len(line.plain) <= width
        line.plain.encode(encoding)
    for line in lines[:3]:
        # Where a name is cut, it is the cell's, and the stage stays.
        assert "train" in line.plain and "50 %" in line.plain


def test_parts_stand_under_each_other() -> None:
    states = [training(f"{n}/10 lora.r={2**n}") for n in range(1, 9)]
    lines = [line.plain for line in stage_lines(states, 0.0, 60)]
    assert len({line.index("50 %") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1


def test_a_stage_that_waits_says_so_until_it_goes_on() -> None:
    state = StageState(source())
    assert stage_lines([state], 0.0, 80)[0].plain.endswith("train  starting")
    state.hear({"time": 1.0, "kind": "note", "text": "another process; waiting"}, now=0.0)
    assert stage_lines([state], 0.0, 80)[0].plain.endswith("another process; waiting")
    state.hear(progress(2.0, 1024), now=0.0)
    assert "25 %" in stage_lines([state], 0.0, 80)[0].plain


def test_details_leave_out_what_does_not_fit() -> None:
    state = training()
    state.hear({"time": 111.0, "kind": "memory", "bytes": 1_800_000_000}, now=0.0)
    assert details_line(state, 100) == (
        "loss █▁ 2.50 → 1.23 · step 43 of 86 · memory 1.8 GB · learning rate 0.0002 · on a"
    )
    assert details_line(state, 40) == "loss █▁ 2.50 → 1.23 · step 43 of 86"
    assert "█" not in details_line(state, 100, "ascii")


def test_numbers_read_well() -> None:
    assert [clock(s) for s in (5, 80, 3723)] == ["0:05", "1:20", "1:02:03"]
    assert amount(4096, "tokens") == "4,096 tokens"
    assert amount(1, "models") == "1 model"
    assert amount(0.25, "rows") == "0.25 rows"
    assert amount(4_200_000_000, "bytes") == "4.2 GB"
    assert curve([3.0, 3.0, 2.0, 1.0], 2) == "█▁"
    assert curve([], 5) == "" and curve([1.0, 1.0], 5) == "▁▁"


def test_text_is_made_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    assert printable(f"a\x1b[2Jb {SECRET}\nc", "utf-8") == "a [2Jb <HF_TOKEN> c"
    assert printable("2 · 3 … − 訓", "ascii") == "2 - 3 ~ - ?"
    assert printable("é · 訓", "latin-1") == "é - ?"


# --- what is said -------------------------------------------------------------------------------


def test_a_training_from_start_to_end(listening: Listening) -> None:
    assert listening.hear(state_event(100, "started"), progress(101, 0)) == []
    listening.now = 9.9
    assert listening.hear(progress(102, 1024)) == []
    listening.now = 10.0
    assert listening.hear(step(110, 43, 1.234), progress(110, 2048)) == [
        "[2/4 lora.r=4] train: 25 %, loss 1.234"
    ]
    listening.now = 19.9
    assert listening.hear(progress(111, 2176)) == []
    listening.now = 20.0
    assert listening.hear(progress(112, 2304)) == [
        "[2/4 lora.r=4] train: 56 %, 128 tokens/s, loss 1.234, 14 s left"
    ]
    assert listening.hear(progress(138, 4096), state_event(138, "finished"))[-1] == (
        "[2/4 lora.r=4] train: 4,096 tokens in 38 s, loss 1.234"
    )
    assert listening.board.running == {}


def test_notes_and_failures_are_said_at_once_without_secrets(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    note = {"time": 1.0, "kind": "note", "text": f"read 10 rows of {SECRET}"}
    failed = state_event(2.0, "failed", message=f"no {SECRET}\nat all")
    assert listening.hear(state_event(0.0, "started"), note, failed) == [
        "[2/4 lora.r=4] read 10 rows of <HF_TOKEN>",
        "[2/4 lora.r=4] train: failed: no <HF_TOKEN> at all",
    ]


def test_a_shared_stage_that_fails_fails_its_cells_until_it_is_run_again(
    listening: Listening,
) -> None:
    shared = source("1/4 lora.r=2", "data", "2", "3")
    listening.hear(state_event(0, "started"), state_event(1, "failed", message="x"), of=shared)
    assert listening.board.counts.failed == 3
    listening.hear(state_event(2, "started"), of=shared)
    assert listening.board.counts.failed == 0


def test_a_resumed_stage_counts_from_its_own_start(listening: Listening) -> None:
    listening.hear(state_event(0, "started"), progress(5, 3000), step(5, 60, 9.0))
    said = listening.hear(
        state_event(5000, "started"), progress(5001, 3000), state_event(5010, "finished")
    )
    assert said == ["[2/4 lora.r=4] train: 3,000 tokens in 10 s"]


def test_what_comes_after_the_end_begins_nothing(listening: Listening) -> None:
    memory = {"time": 3.0, "kind": "memory", "bytes": 1}
    listening.hear(state_event(1, "started"), state_event(2, "finished"))
    # A last look at the memory; and of two processes that wanted the stage, the second's end.
    assert listening.hear(memory, state_event(3, "finished")) == []
    assert listening.board.running == {}


def test_cells_end_and_take_the_lines_of_killed_workers_with_them(listening: Listening) -> None:
    cell = Source(stage="cell", key="2", name="", place="2/4 lora.r=4", run_ids=("2",))
    listening.hear(state_event(1, "started"))
    listening.hear(state_event(1, "started"), of=source("1/4 lora.r=2", "data", "2"))
    listening.now = 65.0
    said = listening.hear({"kind": "cell", "run_id": "2", "status": "failed"}, of=cell)
    assert said == ["0 of 4 cells done · 1 failed · 1:05"]
    # The other cell still needs its stage.
    assert [state.source.name for state in listening.board.running.values()] == ["data"]
    assert listening.hear({"kind": "cell", "run_id": "1", "status": "complete"}, of=cell) == [
        "1 of 4 cells done · 1 failed · 1:05 · about 1:05 left"
    ]


def test_an_unknown_kind_of_event_changes_nothing(listening: Listening) -> None:
    assert listening.hear(state_event(1, "started"), {"time": 2.0, "kind": "smell"}) == []


def test_more_stages_than_lines(listening: Listening) -> None:
    for number in (3, 1, 2, 4, 5):
        listening.hear(state_event(1, "started"), of=source(f"{number}/5 x"))
    lines = [line.plain for line in listening.board.lines(60, 0.0, height=6)]
    assert lines == [
        "1/5 x · train  starting",
        "2/5 x · train  starting",
        "and 3 more",
        "0 of 4 cells done · 0:00",
    ]


def test_without_a_terminal_lines_are_plain_and_in_its_letters() -> None:
    raw = io.BytesIO()
    output = io.TextIOWrapper(raw, encoding="ascii")
    with display(cells=1, output=output) as listen:
        listen(source(), state_event(0, "started"))
        listen(source(), {"time": 1, "kind": "note", "text": "2 − 1 · 訓"})
        listen(source(), state_event(2, "finished"))
        listen(source(), {"kind": "cell", "run_id": "2", "status": "complete"})
    assert raw.getvalue().decode("ascii").splitlines() == [
        "[2/4 lora.r=4] 2 - 1 - ?",
        "[2/4 lora.r=4] train: done in 2.0 s",
        "1 of 1 cell done - 0:00",
    ]


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = path_of(tmp_path, "train", "k" * 64)
    emit = to_file(path)
    emit(progress(1.0, 1))
    with path.open("a") as file:
        file.write('{"time": 2.0, "kind": "prog')
    emit(progress(3.0, 3))
    emit(progress(4.0, 4))
    assert [event["time"] for event in read(path)[0]] == [1.0, 4.0]


# --- a terminal ---------------------------------------------------------------------------------

SCRIPT = """
import sys, time
from ftsuite.display import display
from ftsuite.events import Source
s = Source(stage="train", key="k", name="train", place="2/4 lora.r=4", run_ids=("2",))
def progress(time, done):
    return {"time": time, "kind": "progress", "name": "train", "done": done, "total": 4096,
            "unit": "tokens"}
with display(cells=4) as listen:
    listen(s, {"time": 0.0, "kind": "state", "state": "started"})
    listen(s, progress(2.0, 1024))
    listen(s, progress(10.0, 2048))
    listen(s, {"time": 10.0, "kind": "step", "step": 1, "steps": 2, "loss": 1.234})
    time.sleep(1.2)
    print("[2/4 lora.r=4] printed by somebody else")
    print("a library's warning", file=sys.stderr)
    time.sleep(0.6)
    if "fail" in sys.argv:
        raise KeyboardInterrupt
    listen(s, {"time": 38.0, "kind": "state", "state": "finished"})
    listen(s, {"kind": "cell", "run_id": "2", "status": "complete"})
"""


def in_terminal(*arguments: str, columns: int) -> str:
    """What a program writes to a terminal of so many columns."""
    main, other = pty.openpty()
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "TERM": "xterm",
        "PYTHONIOENCODING": "utf-8",
        "COLUMNS": str(columns),
        "LINES": "20",
    }
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=other, stdout=other, stderr=other, env=environment
    ):
        os.close(other)
        written = b""
        # The kernel says EIO when the last process has closed the terminal.
        try:
            while chunk := os.read(main, 65536):
                written += chunk
        except OSError:
            pass
    os.close(main)
    return written.decode()


def visible(written: str) -> list[str]:
    """The lines that stay, once the terminal has obeyed what moves and erases."""
    lines, row = [""], 0
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", written):
        if part == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif part == "\r":
            pass
        elif re.fullmatch(r"\x1b\[\d*A", part):
            row -= int(part[2:-1] or 1)
        elif part == "\x1b[2K":
            lines[row] = ""
        elif not part.startswith("\x1b"):
            lines[row] += part
    return [line for line in lines if line]


def test_on_a_terminal_lines_are_drawn_anew_and_others_go_above() -> None:
    written = in_terminal("-c", SCRIPT, columns=100)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert re.search(
        r"2/4 lora\.r=4 · train  ━+─+   50 %  128 tokens/s  loss 1\.234  0:1\d left", plain
    )
    assert "0 of 4 cells done · 0:0" in plain
    *above, last = visible(written)
    assert above == [
        "[2/4 lora.r=4] printed by somebody else",
        "a library's warning",
        "[2/4 lora.r=4] train: 2,048 tokens in 38 s, loss 1.234",
    ]
    assert last.startswith("1 of 4 cells done · 0:0")


def test_an_interrupt_leaves_the_terminal_as_it_was() -> None:
    written = in_terminal("-c", SCRIPT, "fail", columns=60)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "KeyboardInterrupt" in visible(written)[-1]
    assert not any("50 %" in line for line in visible(written))
