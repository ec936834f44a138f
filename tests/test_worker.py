"""Orders in clean processes: the same records, in any directory; and what a worker refuses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from bystage import CPU
from conftest import Command, environment, wait_for

from ftsuite import devices, stages, worker
from ftsuite.config import ProbesConfig, TemplateConfig
from ftsuite.errors import BackendUnavailable, StoreError
from ftsuite.models import embedded, sources
from ftsuite.recipe import recipe
from ftsuite.scoring import heldout
from ftsuite.store import computing
from ftsuite.store.entries import file_digest
from ftsuite.store.stage import Reference, from_order
from ftsuite.studies import sweeper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ftsuite.store.stage import Stage

OWN = (
    *("probes=default", "probes.limit=1", "probes.max_new_tokens=4", "probes.files=[pirate]"),
    *("data=file", "evals.limits={}", "evals.limit=3", "evals.generate_limit=2"),
)
"""A cell with held-out tasks and a probe."""


@pytest.fixture(scope="module")
def done(new_command: Callable[[str], Command]) -> Command:
    """One cell with held-out tasks and probes, computed by a warm worker."""
    command = new_command("orders")
    code, output = command.run(*OWN)
    assert code == 0, output
    return command


def stages_of(command: Command) -> dict[str, Stage[Any]]:
    """Every stage of the command's cell, one for each kind, by kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTSUITE_STORE", str(command.store))
        patch.chdir(command.folder)
        (config,) = sweeper.compose(command.arguments(*OWN)).configs
        base = sources.resolve(config.model, command.store)
        target = devices.resolve(config.backend, config.model, devices.probe())
        cell = recipe(config, target, base.model)
        found = {stage.NAME: stage for _, stage in cell.named()}
        found["heldout"] = heldout.stage_of(config.data, config.evals)
    return found


def run_worker(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ftsuite.worker", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        check=False,
        timeout=300,
    )


def files_of(folder: Path) -> dict[str, str]:
    """Digests of an entry's files, those apart that tell of the computing."""
    return {
        str(path.relative_to(folder)): file_digest(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("result.json", "training_args.bin")
    }


KINDS = [kind for kind in stages.KINDS if kind not in ("model", "standard-data")]


@pytest.mark.parametrize("kind", KINDS)
def test_an_order_gives_the_same_record_elsewhere(kind: str, done: Command, tmp_path: Path) -> None:
    """A clean process in another directory, on a copy of the store in another place."""
    stage = stages_of(done)[kind]
    shutil.copytree(done.store, tmp_path / "copy")
    entry = computing.entry_folder(tmp_path / "copy", stage)
    before, files = json.loads((entry / "result.json").read_text()), files_of(entry)
    shutil.rmtree(entry)
    order = entry.with_suffix(".order.json")
    if kind == "heldout":
        order.write_text(json.dumps(stage.order()))
    (tmp_path / "elsewhere").mkdir()
    ended = run_worker(str(order), folder=tmp_path / "elsewhere")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == str(entry)
    after = json.loads((entry / "result.json").read_text())
    assert after["record"] == before["record"]
    assert files_of(entry) == files
    assert not list((tmp_path / "elsewhere").iterdir())


def test_every_kind_has_an_order_that_reads_back(done: Command) -> None:
    for kind, stage in {**stages_of(done), **outside()}.items():
        read = from_order(stages.KINDS, json.loads(json.dumps(stage.order())))
        assert (read.NAME, read.key, read.inputs) == (kind, stage.key, stage.inputs)
        assert {one.key for one in read.upstreams} == {one.key for one in stage.upstreams}
        assert all(isinstance(one, Reference) for one in read.upstreams)


def outside() -> dict[str, Stage[Any]]:
    """Stages whose results come from a package registry."""
    return {
        "model": embedded.convert_stage("smollm2-135m-instruct"),
        "standard-data": embedded.standard_stage(),
    }


# --- what is refused ------------------------------------------------------------------------


TORCH = CPU.versions["torch"]


def probe_order(**target: Any) -> dict[str, Any]:
    changed = {"device": "cpu", "dtype": "float32", "versions": {}, **target}
    model = stages.ModelRef(
        base=stages.BaseModel(source="folder", revision="0", path="/nowhere"),
        settings=stages.ModelConfig(),
        template=TemplateConfig(),
    )
    return stages.Probe(
        model=model,
        probes=ProbesConfig(files=["/nowhere.yaml"]),
        name="x",
        sha256="0",
        target=devices.Target(**changed),
    ).order()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (
            {"versions": {"torch": "1.0"}},
            rf"torch is {re.escape(CPU.versions['torch'])} here, not 1\.0",
        ),
        ({"versions": {"nosuch": "2"}}, "nosuch is missing here, not 2"),
        ({"device": "tpu"}, r"no device tpu is here \(.*cpu is\)"),
        ({"dtype": "float8"}, "dtype float8 is none of float32, bfloat16, float16"),
        ({"quantisation": "nf4"}, "quantisation nf4 cannot be computed here"),
    ],
)
def test_another_target_is_refused_by_name(
    target: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BackendUnavailable, match=said):
        worker.compute(tmp_path, probe_order(**target))
    assert not list(tmp_path.iterdir())


def test_an_order_that_was_changed_is_refused(tmp_path: Path) -> None:
    order = probe_order()
    order["fields"]["sha256"] = "1"
    with pytest.raises(StoreError, match=r"probe has the key .* here, not .*; another version"):
        worker.compute(tmp_path, order)
    del order["fields"]["target"]
    with pytest.raises(StoreError, match="order: not one that can be computed"):
        worker.compute(tmp_path, order)


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text(json.dumps(probe_order(device="tpu")))
    ended = run_worker("order.json", folder=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("ftsuite: error: the order is for another target: no device tpu")
    assert ended.stderr.count("\n") == 1
    (tmp_path / "order.json").write_text("{")
    assert run_worker("order.json", folder=tmp_path).stderr.count("\n") == 1


def test_probe_tells_what_the_environment_has(tmp_path: Path) -> None:
    told = json.loads(run_worker("--probe", folder=tmp_path).stdout)
    assert told["devices"][-1] == "cpu"
    assert told["versions"]["torch"] == CPU.versions["torch"]


# --- a stream of orders ---------------------------------------------------------------------


def serving(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ftsuite.worker", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=environment(),
    )


def ask(process: subprocess.Popen[str], **asked: Any) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    answer: dict[str, Any] = json.loads(process.stdout.readline())
    return answer


def test_one_worker_takes_order_after_order(done: Command, tmp_path: Path) -> None:
    shutil.copytree(done.store, tmp_path / "store")
    found = stages_of(done)
    process = serving(tmp_path)
    refused = ask(
        process, do="compute", store=str(tmp_path / "store"), orders=[probe_order(device="tpu")]
    )
    assert refused["error"]["kind"] == "BackendUnavailable"
    assert refused["error"]["traceback"] == ""
    for kind in ("loss", "probe"):
        entry = computing.entry_folder(tmp_path / "store", found[kind])
        before = json.loads((entry / "result.json").read_text())["record"]
        shutil.rmtree(entry)
        order = found[kind].order()
        told = ask(process, do="compute", store=str(tmp_path / "store"), orders=[order])
        assert told == {"key": found[kind].key}
        assert json.loads((entry / "result.json").read_text())["record"] == before
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_a_worker_ends_when_nobody_reads_its_answers(done: Command, tmp_path: Path) -> None:
    """`kill -9` of the command: its worker must not go on for hours."""
    command = Command(done.model, done.rows, tmp_path, study="killed")
    process = command.start("train.epochs=2000")
    try:
        wait_for(lambda: workers_of(process), process)
        (child,) = workers_of(process)
        command.kill(process)
        child.wait(timeout=60)
    finally:
        command.end()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [child for child in children if "ftsuite.worker" in child.cmdline()]
