"""Records on disk: what is refused when it is read, and what never gets there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import HEADLINE, make_record, make_study

from ftsuite import jsonfile
from ftsuite.errors import StoreError, redacted
from ftsuite.records import SCHEMA_VERSION, RunRecord, StudyManifest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    jsonfile.write(tmp_path / "run.json", make_record())
    return tmp_path / "run.json"


def rewritten(path: Path, *, sign: bool, **changes: Any) -> Path:
    """Change fields (`a__b__0=value` for a path), as a forger with or without our code would."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    for place, value in changes.items():
        node: Any = plain
        *way, last = (int(part) if part.isdigit() else part for part in place.split("__"))
        for part in way:
            node = node[part]
        node[last] = value
    if sign:
        del plain["sha256"]
        plain["sha256"] = jsonfile.digest(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path


def test_what_is_written_is_read(path: Path) -> None:
    assert jsonfile.read(RunRecord, path) == make_record()
    manifest = make_study(make_record())
    jsonfile.write(path, manifest)
    assert jsonfile.read(StudyManifest, path) == manifest


@pytest.mark.parametrize(
    "change",
    [{"stages__0__seconds": 1.0}, {"label": "other"}, {"tuned__metrics__0__values__0": 0.5}],
)
def test_changed_record_is_found(path: Path, change: dict[str, Any]) -> None:
    rewritten(path, sign=False, **change)
    with pytest.raises(StoreError, match=r"run\.json: does not have the checksum .* again"):
        jsonfile.read(RunRecord, path)


def test_record_without_checksum_is_refused(path: Path) -> None:
    plain = json.loads(path.read_text())
    del plain["sha256"]
    path.write_text(json.dumps(plain))
    with pytest.raises(StoreError, match="checksum"):
        jsonfile.read(RunRecord, path)


def test_every_flipped_byte_is_found_or_white_space(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    manifest = make_study(make_record())
    jsonfile.write(path, manifest)
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            assert jsonfile.read(StudyManifest, path) == manifest
        except StoreError:
            continue
        assert content[place] in b" \n"


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1, None, "2"])
def test_another_version_is_refused_with_the_remedy(path: Path, version: object) -> None:
    rewritten(path, sign=True, schema_version=version)
    with pytest.raises(StoreError) as caught:
        jsonfile.read(RunRecord, path)
    assert f"schema_version is {version!r}, this ftsuite reads {SCHEMA_VERSION}" in str(
        caught.value
    )
    assert "run its study again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"mood": "good"}, "mood"),
        ({"provenance__weather": "rain"}, "provenance.weather"),
        ({"tuned__metrics__1__unit": "%"}, "tuned.metrics.1.unit"),
    ],
)
def test_unknown_field_is_refused_at_any_depth(
    path: Path, change: dict[str, Any], where: str
) -> None:
    rewritten(path, sign=True, **change)
    with pytest.raises(StoreError) as caught:
        jsonfile.read(RunRecord, path)
    assert f"({where}: no such field;" in str(caught.value)
    assert "delete it and run again" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # HEADLINE is an accuracy.
        ({"tuned__metrics__1__values__3": 7.5}, f"{HEADLINE}: a value of 7.5 lies outside 0 to 1"),
        ({"base__metrics__1__values__0": -1.0}, "a value of -1 lies outside 0 to 1"),
        ({"comparisons__1__tuned": 7.5}, "a value of 7.5 lies outside 0 to 1"),
        ({"comparisons__1__p_value": 1.5}, "a p-value of 1.5 lies outside 0 to 1"),
    ],
)
def test_score_that_its_metric_cannot_give_is_refused(
    path: Path, change: dict[str, Any], said: str
) -> None:
    rewritten(path, sign=True, **change)
    with pytest.raises(StoreError) as caught:
        jsonfile.read(RunRecord, path)
    assert said in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff", b"{" * 5, b"[" * 100_000, b'{"a": ' * 5000]
)
def test_file_that_is_no_record_is_one_line(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"run\.json: .*(delete it|run its study again)"):
        jsonfile.read(RunRecord, path)


def test_folder_in_place_of_a_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        jsonfile.read(RunRecord, tmp_path)


def test_no_secret_is_written_and_the_checksum_holds_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Quotes and backslashes are escaped in JSON, where a search of the text would miss them.
    secret = 'a"secret\\with signs'
    monkeypatch.setenv("WANDB_API_KEY", secret)
    record = make_record(label=f"data.x={secret}", answer=f"It is {secret}.")
    jsonfile.write(tmp_path / "run.json", record)
    monkeypatch.delenv("WANDB_API_KEY")
    assert "with signs" not in (tmp_path / "run.json").read_text()
    read = jsonfile.read(RunRecord, tmp_path / "run.json")
    assert read.label == "data.x=<WANDB_API_KEY>"


def test_a_secret_of_digits_does_not_break_the_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "123456789")
    plain = {"bytes": 123456789, "many": [123456789, 1], "text": "x123456789"}
    assert json.loads(jsonfile.dumps(plain)) == {**plain, "text": "x<HF_TOKEN>"}
    assert redacted({"a123456789": ["123456789"]}) == {"a<HF_TOKEN>": ["<HF_TOKEN>"]}


LIMITED = """
import resource, signal, sys
from pathlib import Path
from ftsuite import jsonfile
from ftsuite.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    jsonfile.write_text(Path(sys.argv[1]), "x" * 5000)
except StoreError as error:
    print(error)
"""


def test_text_that_does_not_fit_leaves_the_old_file_and_one_line(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("old")
    command = [sys.executable, "-c", LIMITED, str(path)]
    said = subprocess.check_output(command, text=True, cwd=REPOSITORY)
    assert said.startswith(f"{path}: cannot be written (File too large); ")
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
    assert path.read_text() == "old"
