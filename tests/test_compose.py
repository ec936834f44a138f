"""From a command line to typed cells: sweeps, grids, overrides, and the one line when it fails."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from ftsuite.__main__ import main
from ftsuite.choices import Packing
from ftsuite.errors import FtsuiteError
from ftsuite.resources import conf_dir
from ftsuite.studies import sweeper
from ftsuite.studies.compose import cross_sweeps
from ftsuite.studies.study import run_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from ftsuite.config import RunConfig

RANKS, PACKINGS = [2, 4, 8, 16], ["off", "bfd", "wrapped"]

SWEEPS: dict[str, tuple[Callable[[RunConfig], object], list[object]]] = {
    "lora_rank": (lambda c: c.lora.r, [2, 4, 8, 16]),
    "packing": (lambda c: c.packing.strategy.value, ["off", "bfd", "wrapped"]),
    "template": (lambda c: c.template.name, ["model", "chatml", "vicuna", "dolly", "llama3"]),
    "model_size": (lambda c: c.model.name, ["smollm2_135m", "smollm2_360m", "smollm2_1_7b"]),
    "learning_rate": (lambda c: c.train.learning_rate, [3e-4, 1e-3, 3e-3]),
    "seed": (lambda c: c.train.seed, [0, 1, 2]),
}

CHOICES = sorted(
    (path.parent.name, path.stem)
    for path in conf_dir().glob("*/*.yaml")
    if path.parent.name not in ("sweep", "hydra")
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and store: whatever is written shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("FTSUITE_TRACEBACK", raising=False)
    # Nothing here may train a model, least of all where a check has gone missing.
    monkeypatch.setattr("ftsuite.studies.running.prepare", None)
    return tmp_path


def values(*arguments: str) -> list[tuple[int, str]]:
    return [(c.lora.r, c.packing.strategy.value) for c in sweeper.compose([*arguments]).configs]


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails before anything runs or is written."""
    assert main([*arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ftsuite: error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert list(Path.cwd().iterdir()) == []
    return printed.err.removeprefix("ftsuite: error: ").rstrip("\n")


@pytest.mark.parametrize("name", SWEEPS)
def test_each_sweep_composes_to_its_cells(name: str) -> None:
    read, expected = SWEEPS[name]
    sweep = sweeper.compose([f"+sweep={name}"])
    assert [read(config) for config in sweep.configs] == expected
    assert sweep.manifest.study == name
    assert len({cell.run_id for cell in sweep.manifest.cells}) == len(expected)
    assert [run_id(config) for config in sweep.configs] == [
        cell.run_id for cell in sweep.manifest.cells
    ]


def test_every_sweep_file_is_in_this_test() -> None:
    assert {path.stem for path in (conf_dir() / "sweep").glob("*.yaml")} == set(SWEEPS)


@pytest.mark.parametrize("argument", ["+sweep=lora_rank,packing", "+sweep=[lora_rank,packing]"])
def test_two_sweeps_make_their_grid(argument: str) -> None:
    sweep = sweeper.compose([argument])
    cells = [(c.lora.r, c.packing.strategy.value) for c in sweep.configs]
    assert cells == list(itertools.product(RANKS, PACKINGS))
    assert sweep.manifest.study == "lora_rank-packing"
    assert sweep.manifest.cells[0].label == "lora.r=2, packing=off"


def test_only_a_crossed_sweep_is_rewritten() -> None:
    arguments = ["+sweep=lora_rank", "lora.r=2,4", "++sweep=a,b,c", "+sweep=[a,b]"]
    assert cross_sweeps(arguments) == [
        "+sweep=lora_rank",
        "lora.r=2,4",
        "+sweep=[a,b,c]",
        "+sweep=[a,b]",
    ]


def test_the_command_line_narrows_a_sweep() -> None:
    assert [r for r, _ in values("+sweep=lora_rank", "lora.r=32")] == [32]
    assert [r for r, _ in values("+sweep=lora_rank", "lora.r=2,32")] == [2, 32]
    assert values("+sweep=lora_rank,packing", "packing=off") == [(r, "off") for r in RANKS]


def test_a_group_choice_does_not_undo_a_swept_value() -> None:
    configs = sweeper.compose(["+sweep=lora_rank", "lora=qv"]).configs
    assert [config.lora.r for config in configs] == RANKS
    assert {tuple(config.lora.target_modules) for config in configs} == {("q_proj", "v_proj")}


def test_a_single_run_is_a_sweep_of_one() -> None:
    sweep = sweeper.compose(["lora.dropout=0.1"])
    assert sweep.manifest.study == "single"
    assert [cell.label for cell in sweep.manifest.cells] == ["lora.dropout=0.1"]


def test_single_runs_have_names_of_their_own() -> None:
    many = [f"train.{name}=1" for name in ("seed", "epochs", "max_steps", "learning_rate")]
    names = []
    for arguments in ([], many, [*many, "lora.r=2"]):
        (cell,) = sweeper.compose(arguments).manifest.cells
        assert cell.label == f"smollm2_135m on intent {cell.run_id[:6]}"
        names.append(cell.label)
    assert len(set(names)) == 3


def test_the_study_can_be_named() -> None:
    assert sweeper.compose(["+sweep=seed", "study=mine"]).manifest.study == "mine"


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_in_conf_composes_and_is_valid(group: str, choice: str) -> None:
    more = []
    if choice == "file":
        more = ["data.train=evals/intent/train.jsonl"]
    if choice in ("dolly", "no_robots"):
        # Its held-out rows are on the Hub.
        more = ["evals=none"]
    (config,) = sweeper.compose([f"{group}={choice}", *more]).configs
    written = yaml.safe_load((conf_dir() / group / f"{choice}.yaml").read_text(encoding="utf-8"))
    for key, value in (written or {}).items():
        if key not in ("defaults", "train") and not isinstance(value, (dict, list)):
            found = getattr(getattr(config, group), key)
            if value is None and key == "name":
                assert found == "train"
                continue
            # YAML 1.1 reads 1e-3 as text.
            assert found == (float(value) if isinstance(found, float) else value), key


def test_own_data_has_to_be_named() -> None:
    with pytest.raises(FtsuiteError, match=r"data\.train = '': name a file"):
        sweeper.compose(["data=file"])


def test_the_executor_is_a_group_and_in_no_cells_identity() -> None:
    plain, inline, two = (
        sweeper.compose(["+sweep=lora_rank", *one])
        for one in ([], ["executor=inline"], ["executor.workers=2"])
    )
    found = [
        (s.configs[0].executor.name, s.configs[0].executor.workers) for s in (plain, inline, two)
    ]
    assert found == [("local", None), ("inline", None), ("local", 2)]
    ids = {tuple(cell.run_id for cell in s.manifest.cells) for s in (plain, inline, two)}
    assert len(ids) == 1


def test_hydras_multirun_flag_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    swept = []
    monkeypatch.setattr(sweeper, "run", lambda sweep: swept.append(sweep))
    for arguments in (["lora.r=2,4"], ["-m", "lora.r=2,4"], ["lora.r=2,4", "--multirun"]):
        assert main(arguments) == 0
    assert [len(sweep.configs) for sweep in swept] == [2, 2, 2]
    assert len({sweep.manifest.command for sweep in swept}) == 1


def test_a_folder_of_own_sweeps_is_found(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    own_sweep(elsewhere, 'lora.r: "3,5"')
    swept = []
    monkeypatch.setattr(sweeper, "run", lambda sweep: swept.append(sweep))
    assert main(["--config-dir", "mine", "+sweep=own", "study=x"]) == 0
    assert main(["+sweep=own", "hydra.searchpath=[file://mine]"]) == 0
    assert [[c.lora.r for c in sweep.configs] for sweep in swept] == [[3, 5], [3, 5]]


def test_a_yaml_list_in_a_sweep_is_refused(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would take `[3, 5]` for one value; the sweep's values are one text, "3,5"."""
    own_sweep(elsewhere, "lora.r: [3, 5]")
    assert main(["+sweep=own", "hydra.searchpath=[file://mine]"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "lora.r" in error
    assert not (elsewhere / "store").exists()


def own_sweep(folder: Path, params: str) -> None:
    (folder / "mine" / "sweep").mkdir(parents=True)
    (folder / "mine" / "sweep" / "own.yaml").write_text(
        f"# @package _global_\nhydra:\n  sweeper:\n    params:\n      {params}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("lora.rr=3", "lora.rr = '3': no such setting; did you mean r?"),
        ("+lora.rr=3", "lora.rr = 3: no such setting; did you mean r?"),
        (
            "++train.lerning_rate=1",
            "train.lerning_rate = 1: no such setting; did you mean learning",
        ),
        ("nosuch=1", "nosuch = '1': no such setting; there are: study, model, data"),
        ("nosuch.deep=1", "nosuch = '1': no such setting; there are: study"),
        ("evals.limits.prose_bpb=few", "evals.limits.prose_bpb = 'few': must be a whole number"),
        ("lora.r=abc", "lora.r = 'abc': must be a whole number"),
        ("lora.r=2.5", "lora.r = '2.5': must be a whole number"),
        ("lora.r=null", "lora.r = 'null': may not be null"),
        ("lora.r=", "lora.r = '': must be a whole number"),
        ("train.epochs=many", "train.epochs = 'many': must be a number"),
        ("lora.use_rslora=maybe", "lora.use_rslora = 'maybe': must be true or false"),
        ("lora.target_modules=5", "lora.target_modules = '5': must be a list"),
        ("evals.limits=3", "evals.limits = '3': must be a mapping"),
        ("train.scheduler=foo", "train.scheduler = 'foo': choose one of [cosine, linear"),
        ("model=foo", "model = 'foo': no such choice; there are: llama3_8b, smollm2_135m"),
        ("lora=8", "lora = 8: a group takes the name of a choice, such as lora=default"),
        ("+sweep=lora_ranks", "sweep = 'lora_ranks': no such choice; there are: learning_rate"),
        ("+sweep=lora_rank,nosuch", "sweep = 'nosuch': no such choice; there are: learning_rate"),
        ("sweep=lora_rank", "sweep = 'lora_rank': write +sweep=lora_rank"),
        (
            "hydra/launcher=joblib",
            "hydra/launcher = 'joblib': there are no launchers; set executor.",
        ),
        ("lora.r", "lora.r = '': not KEY=VALUE, such as lora.r=8"),
        ("lora.r=[1,2", "lora.r = '[1,2': not a value (no viable alternative"),
        ("lora.r=0", "lora.r = 0: must be at least 1"),
        (
            "evals.limits.intent_choise=80",
            "evals.limits.intent_choise = 80: evals.tasks has no",
        ),
        ("data.train=nowhere.jsonl", "data.train = 'nowhere.jsonl': no such file, neither in"),
        ("probes.files=[nope]", "probes.files = 'nope': no such probe; known are json_only"),
        ("study=a/b", "study = 'a/b': a name is letters, digits"),
        ("study=../x", "study = '../x': a name is letters, digits"),
        ("study=a,b", "study = ['a', 'b']: one sweep is one study"),
        ("--config-name other", "--config-name: not supported"),
        ("--cfg job lora.rr=2", "lora.rr = '2': no such setting; did you mean r?"),
        ("--help lora=2", "lora = 2: a group takes the name of a choice"),
        ("+sweep=lora_rank lora.r=4,0", "lora.r = 0: must be at least 1"),
        ("lora.r=4,4", "sweep = 'lora.r=4': the same cell as lora.r=4; name it once"),
        ("train.seed=0,1 train.checkpoint_every_steps=5,6", "sweep = 'train.seed=0, train.check"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_writes_nothing(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(capsys, *arguments.split()).startswith(line)


def test_every_cell_is_validated_before_the_first_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[object] = []
    monkeypatch.setattr("ftsuite.studies.running.run", started.append)
    failure(capsys, "+sweep=lora_rank,packing", "lora.r=4,0", "packing=off,bfd")
    assert started == []


def test_an_absent_device_is_found_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ftsuite.devices.has_cuda", lambda: False)
    line = failure(capsys, "backend.device=cpu,cuda")
    assert line.startswith("backend.device = 'cuda': this machine has no such device")
    assert line.endswith("set backend.device=auto")


def test_a_traceback_is_there_for_the_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTSUITE_TRACEBACK", "1")
    with pytest.raises(FtsuiteError, match=r"lora\.r = 0"):
        main(["lora.r=0"])


def test_environment_variable_and_setting_choose_the_store(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FTSUITE_STORE", "/of/the/environment")
    assert sweeper.compose([]).configs[0].store.root == "/of/the/environment"
    assert sweeper.compose(["store.root=/mine"]).configs[0].store.root == "/mine"
    monkeypatch.delenv("FTSUITE_STORE")
    assert sweeper.compose([]).configs[0].store.root == "outputs"


def test_packing_off_is_a_word_and_not_yamls_false() -> None:
    assert sweeper.compose(["packing=off"]).configs[0].packing.strategy is Packing.off
