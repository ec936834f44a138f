"""Overrides and own folders of settings: what is refused in one line, and what works."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from omegaconf import open_dict

from ftsuite.__main__ import main
from ftsuite.errors import FtsuiteError
from ftsuite.resources import conf_dir
from ftsuite.studies import sweeper
from ftsuite.studies.overrides import MAPPINGS
from ftsuite.studies.study import run_id

if TYPE_CHECKING:
    from ftsuite.config import RunConfig

DIGITS = "1" * 5000


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory and store: whatever is written shows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTSUITE_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("FTSUITE_TRACEBACK", raising=False)
    monkeypatch.setattr("ftsuite.studies.running.prepare", None)
    # --info lets Hydra log to what is stdout at that time.
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    monkeypatch.setattr(logging.getLogger(), "level", logging.getLogger().level)
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that fails before anything runs or is written."""
    before = sorted(Path.cwd().rglob("*"))
    assert main([*arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("ftsuite: error: ")
    assert printed.err.count("\n") == 1
    assert len(printed.err) < 1000
    for word in ("Traceback", "Error executing job", "--multirun", "sys.set_int"):
        assert word not in printed.err
    assert sorted(Path.cwd().rglob("*")) == before
    return printed.err.removeprefix("ftsuite: error: ").rstrip("\n")


def one(*arguments: str) -> RunConfig:
    (config,) = sweeper.compose([*arguments]).configs
    return config


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        # Values that have to be given.
        ("data.train=???", "data.train = '???': ??? stands for a value that has to be given"),
        ("lora.r=???", "lora.r = '???': ??? stands for"),
        ("lora={r: ???}", "lora = '{r: ???}': ??? stands for"),
        ("lora=???", "lora = '???': a group takes the name of a choice"),
        ("evals.tasks=[???]", "evals.tasks[0] = '???': has to be given"),
        ("template.kwargs={a: {b: ???}}", "template.kwargs = '{a: {b: ???}}': ??? stands for"),
        # Nothing is taken away.
        ("~lora", "~lora: a group cannot be taken away; choose one of default, qv"),
        ("~lora=default", "~lora: a group cannot be taken away"),
        (
            "~lora.r",
            "~lora.r: a setting cannot be taken away, only changed; its default is lora.r=8",
        ),
        (
            "~lora.alpha",
            "~lora.alpha: a setting cannot be taken away, only changed; its default is",
        ),
        ("~store", "~store: settings cannot be taken away"),
        (
            "~evals.limits",
            "~evals.limits: a setting cannot be taken away; evals.limits={} empties it",
        ),
        (
            "~evals.limits.nosuch",
            "~evals.limits.nosuch: no such entry of evals.limits; there are: i",
        ),
        ("~nosuch", "~nosuch: no such setting"),
        # Sweeps.
        ("lora.r=range(5,5)", "lora.r = 'range(5,5)': no value is in it"),
        ("lora.r=range(1,5,0)", "lora.r = 'range(1,5,0)': not a list of values, nor a range"),
        ("lora.r=range(1,5,0.0)", "lora.r = 'range(1,5,0.0)': not a list of values, nor a range"),
        ("lora.r=range(1,nan)", "lora.r = 'range(1,nan)': not a list of values, nor a range"),
        ("lora.r=range(0,1e300)", "lora.r = 'range(0,1e300)': the sweep would have more than 10,"),
        ("lora.r=interval(1,5)", "lora.r = 'interval(1,5)': not a list of values, nor a range"),
        ("model=glob(zz*)", "model = 'glob(zz*)': no value is in it"),
        (
            "+sweep=choice(lora_rank,packing)",
            "sweep = 'choice(lora_rank,packing)': write +sweep=a,b",
        ),
        ("+sweep=glob(*)", "sweep = 'glob(*)': write +sweep=a,b"),
        ("+sweep=lora_rank,lora_rank", "sweep = ['lora_rank', 'lora_rank']: name each sweep once"),
        ("+sweep=[]", "sweep = []: name each sweep once; there are: learning_rate"),
        ("+sweep=", "sweep = '': a group takes the name of a choice, such as sweep=learning_rate"),
        ("+sweep=null", "sweep = None: a group takes the name of a choice"),
        (
            "model=[smollm2_135m,smollm2_360m]",
            "model = ['smollm2_135m', 'smollm2_360m']: takes one",
        ),
        ("model=", "model = '': a group takes the name of a choice, such as model=llama3_8b"),
        # Numbers.
        ("lora.r=1e12", "lora.r = '1e12': must be a whole number"),
        ("lora.r=1000000000000", "lora.r = 1000000000000: must be at most 65,536"),
        ("lora.r=-0", "lora.r = 0: must be at least 1"),
        ("lora.r=0x10", "lora.r = '0x10': must be a whole number"),
        ("lora.r=true", "lora.r = 'true': must be a whole number"),
        ("lora.r=[4]", "lora.r = '[4]': must be a whole number"),
        ("lora.r={a: 1}", "lora.r = '{a: 1}': must be a whole number"),
        ("train.epochs=1e308", "train.epochs = 1e+308: must be at most 100000"),
        ("train.epochs=1e309", "train.epochs = inf: must be above 0, finite"),
        ("train.epochs=-0.0", "train.epochs = -0.0: must be above 0"),
        ("train.learning_rate=1e-400", "train.learning_rate = 0.0: must be above 0"),
        (
            "train.micro_batch_size=99999999999",
            "train.micro_batch_size = 99999999999: must be at mo",
        ),
        (
            "probes.seed=99999999999999999999999",
            "probes.seed = 99999999999999999999999: must be 0 ",
        ),
        ("data.split_seed=-1", "data.split_seed = -1: must be 0 to"),
        ("evals.subset_seed=1e99", "evals.subset_seed = '1e99': must be a whole number"),
        ("probes.temperature=1e-40", "probes.temperature = 1e-40: must be 0 (greedy) or 0.001 to"),
        ("probes.temperature=1e40", "probes.temperature = 1e+40: must be 0 (greedy) or 0.001 to"),
        ("backend.threads=100000", "backend.threads = 100000: this machine has "),
        (f"lora.r={DIGITS}", "lora.r = '1111"),
        (f"train.epochs={DIGITS[:4000]}", "train.epochs = '1111"),
        # Lists.
        (
            "lora.target_modules=[[q_proj]]",
            "lora.target_modules = [['q_proj']]: must be a list of w",
        ),
        ("evals.watch=[[a/b]]", "evals.watch = [['a/b']]: must be a list of words"),
        ("probes.files=[{a: 1}]", "probes.files = [{'a': 1}]: must be a list of words"),
        # Mappings.
        ("gates.max_worse={intent_choice/acc: x}", "gates.max_worse.intent_choice/acc = 'x': must"),
        ("gates.max_worse={intent_choice: 0.1}", "gates.max_worse.intent_choice = "),
        ("gates.max_worse=[1]", "gates.max_worse = '[1]': must be a mapping, such as {a: 1}"),
        (
            "gates.max_worse.intent_choice/acc=0.1",
            "gates.max_worse.intent_choice/acc = '0.1': write",
        ),
        (
            "evals.limits={intent_choice: null}",
            "evals.limits.intent_choice = '{intent_choice: null",
        ),
        ("evals.limits={nosuch: 2}", "evals.limits.nosuch = 2: evals.tasks has no such task"),
        ("evals.limits={1: 2}", "evals.limits.1 = '{1: 2}': its keys must be words"),
        # Names.
        ("lora={rr: 3}", "lora.rr = '{rr: 3}': no such setting; did you mean r?"),
        ("+lora.rr=4", "lora.rr = 4: no such setting; did you mean r?"),
        ("+lora.r=4", "+lora.r: it has a value already; write lora.r=VALUE"),
        ("lora.r.x=3", "lora.r.x = '3': lora.r is one value and holds no settings"),
        ("Model=smollm2_135m", "Model = 'smollm2_135m': no such setting; did you mean model?"),
        ("models=smollm2_135m", "models = 'smollm2_135m': no such setting; did you mean model?"),
        ("model=smollm2_135M", "model = 'smollm2_135M': no such choice; there are: llama3_8b"),
        ("data/train=x", "data/train = 'x': no such group; write data.train=x"),
        ("hydra.nosuch=4", "hydra.nosuch = '4': Hydra has no such setting"),
        (
            "hydra/launcher=nosuch",
            "hydra/launcher = 'nosuch': there are no launchers; set executor.",
        ),
        ("executor=nosuch", "executor = 'nosuch': no such choice; there are: inline, local"),
        ("hydra.searchpath=nope", "must be a list of folders, such as [file://DIR]"),
        ("hydra.searchpath=[file://nope]", "hydra.searchpath = 'file://nope': no such folder"),
        ("lora.\U0001f642=3", "lora.\U0001f642 = '3': no setting has such a name"),
        ("lora.\u0433=3", "lora.\u0433 = '3': no setting has such a name"),
        ("lora..r=3", "lora..r = '3': no setting has such a name"),
        ("lora r=3", "lora r = '3': no setting has such a name"),
        ("x" * 100_000 + "=3", "xxx"),
        # Text.
        ("study=..", "study = '..': a name is letters"),
        ("study=.", "study = '.': a name is letters"),
        ("study=a b", "study = 'a b': a name is letters"),
        ("study=-x", "study = '-x': a name is letters"),
        ("study=" + "x" * 100_000, "study = 'xxx"),
        ("study=\u00e9", "study = '\u00e9': not a value; put special signs in quotes: 'study="),
        ("study=a\0b", "study = 'a\\x00b': not a value"),
        ("study=a\nb", "study = 'a\\nb': not a value"),
        ("study='abc", 'study = "\'abc": not a value'),
        ("study=\u202eabc", "study = '\\u202eabc': not a value"),
        ("model.name=", "model.name = '': must be 1 to 100 characters"),
        ("model.name='a\nb'", "model.name = 'a\\nb': must be 1 to 100 characters on one line"),
        ("data.system='\udcff'", "data.system = '\\udcff': holds a sign that is no UTF-8"),
        ("data.train=" + "x" * 5000, "data.train = 'xxx"),
        ("data.train=.", "data.train = '.': is a folder, not a file"),
        ("data.train=/dev/zero", "data.train = '/dev/zero': no such file"),
        ("data.train=[a]", "data.train = '[a]': must be one text"),
        ("data.train=${nosuch}", "data.train = '${nosuch}': Interpolation key 'nosuch' not found"),
        ("data.train=${data.train}", "data.train = '${data.train}': Recursive interpolation"),
        ("data.train=${oc.env:NOSUCH}", "data.train = '${oc.env:NOSUCH}': KeyError raised while"),
        ("data.train=${", "data.train = '${': not a value"),
        # Signs.
        ("", " = '': not KEY=VALUE, such as lora.r=8"),
        ("=3", " = '3': not KEY=VALUE"),
        ("+=3", "+ = '3': not KEY=VALUE"),
        ("lora.r:3", "lora.r:3 = '': not KEY=VALUE"),
        ("lora.r==3", "lora.r = '=3': not a value"),
        ("lora.r=3,", "lora.r = '3,': not a value"),
        ("lora.r=3;4", "lora.r = '3;4': not a value"),
        ("lora.r=" + "[" * 5000, "lora.r = '[[["),
        ("lora.target_modules=" + "[" * 90 + "]" * 90, "lora.target_modules"),
        ("template.kwargs=" + "{a: " * 20_000 + "1" + "}" * 20_000, "template.kwargs = '{a: {a: "),
        # Flags.
        ("--foo", "unrecognized arguments: --foo; see --help"),
        ("--resolve", "--package and --resolve go with --cfg"),
        ("--config-dir=/nope", "--config-dir = '/nope': no such folder"),
    ],
)
def test_a_wrong_override_is_one_line_and_writes_nothing(
    argument: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    said = failure(capsys, argument)
    assert said.lstrip().startswith(line.lstrip())
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--cfg job lora.r=1,2", "lora.r = '1,2': one value, for this shows a single cell"),
        ("--cfg job -p nosuch", "--package = 'nosuch': the configuration has no such part"),
        ("--cfg nosuch", "argument --cfg/-c: invalid choice: 'nosuch'"),
        ("--cfg job --info", "--cfg and --info: one at a time"),
        ("--info defaults lora=nosuch", "lora = 'nosuch': no such choice; there are: default, qv"),
        ("--cfg job ~lora", "~lora: a group cannot be taken away"),
        ("train.seed=range(0,100) lora.r=range(1,200)", "lora.r = 'range(1,200)': the sweep would"),
    ],
)
def test_several_arguments_that_do_not_go_together(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(capsys, *arguments.split()).startswith(line)


# Mappings


def test_the_schema_has_these_mappings() -> None:
    assert MAPPINGS == ["template.kwargs", "evals.limits", "gates.max_worse"]


def test_a_mapping_on_the_command_line_replaces_the_old_one() -> None:
    assert one("evals.limits={intent_choice: 2}").evals.limits == {"intent_choice": 2}
    gates = one("gates.max_worse={intent_choice/acc: 0.1}").gates.max_worse
    assert gates == {"intent_choice/acc": 0.1}
    assert one("template.kwargs={enable_thinking: false}").template.kwargs == {
        "enable_thinking": False
    }
    assert one("evals.limits={}").evals.limits == {}


def test_entries_of_a_mapping_come_and_go_one_by_one() -> None:
    before = one().evals.limits
    assert one("+evals.limits={intent_choice: 2}").evals.limits == before | {"intent_choice": 2}
    assert one("evals.limits.prose_bpb=2").evals.limits == before | {"prose_bpb": 2}
    without = {task: limit for task, limit in before.items() if task != "prose_bpb"}
    assert one("~evals.limits.prose_bpb").evals.limits == without
    both = one("evals.limits={intent_choice: 2}", "evals.limits.prose_bpb=3").evals.limits
    assert both == {"intent_choice": 2, "prose_bpb": 3}
    assert one("template.kwargs.a.b=1").template.kwargs == {"a": {"b": 1}}
    # The remark in conf/evals/standard.yaml.
    limits = one("evals=standard", "evals.limits.mmlu=4").evals.limits
    assert (limits["mmlu"], limits["prose_bpb"]) == (4, 16)


def test_mappings_can_be_swept() -> None:
    configs = sweeper.compose(["evals.limits={intent_choice: 2},{prose_bpb: 3}"]).configs
    assert [c.evals.limits for c in configs] == [{"intent_choice": 2}, {"prose_bpb": 3}]


# Every cell of a sweep


def test_cells_that_share_a_composition_are_those_that_hydra_composes() -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from ftsuite.studies.compose import chosen_sweep, cross_sweeps, from_hydra, new_hydra

    arguments = [
        "+sweep=lora_rank,packing",
        "lora=qv,default",
        "evals.limits={prose_bpb: 3}",
        "lora.alpha=${lora.r}",
        "+gates.max_worse={intent_choice/acc: 0.1}",
    ]
    sweep = sweeper.compose(arguments)
    assert len(sweep.configs) == 24
    hydra, loader = new_hydra()
    shared = hydra.compose_config(
        config_name="config",
        overrides=cross_sweeps(arguments),
        run_mode=RunMode.MULTIRUN,
        with_log_configuration=False,
    )
    for overrides, config in list(zip(sweep.overrides, sweep.configs, strict=True))[::5]:
        whole = loader.load_sweep_config(shared, overrides)
        HydraConfig.instance().set_config(whole)
        sweep_name = chosen_sweep(whole.hydra)
        with open_dict(whole):
            whole.pop("hydra")
        again = from_hydra(whole, sweep_name, overrides)
        assert again == config
        assert run_id(again) == run_id(config)


def test_an_interpolation_follows_the_swept_setting() -> None:
    configs = sweeper.compose(["lora.r=2,4", "lora.alpha=${lora.r}"]).configs
    assert [(config.lora.r, config.lora.alpha) for config in configs] == [(2, 2), (4, 4)]


def test_a_large_sweep_is_composed_quickly() -> None:
    """3,000 cells took minutes when Hydra composed each; 300 take about two seconds."""
    started = time.monotonic()
    sweep = sweeper.compose(["train.seed=range(0,100)", "packing=off,bfd,wrapped"])
    assert len(sweep.configs) == 300
    assert time.monotonic() - started < 20


# Own folders


def own(folder: Path, name: str, content: str | bytes) -> None:
    path = folder / "mine" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


BOMB = "a: &a [x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join([f'*{old}'] * 8)}]\n"
    for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("r: [\n", "lora/own.yaml, line 2: malformed YAML"),
        ("r: 4\nr: 8\n", "lora/own.yaml, line 2: malformed YAML (found duplicate key r)"),
        ("\tr: 4", "lora/own.yaml, line 1: malformed YAML"),
        ("- a\n", "lora/own.yaml: not a mapping of settings"),
        ("3\n", "lora/own.yaml: Invalid loaded object type: int"),
        (b"# caf\xe9\nr: 4\n", "lora/own.yaml: not UTF-8 text (byte 5)"),
        ("r: 4\n".encode("utf-16"), "lora/own.yaml: not UTF-8 text (byte 0)"),
        (b"r: 4\x00\n", "lora/own.yaml: signs that YAML does not allow"),
        ("r: " + "[" * 1000, "lora/own.yaml: nested too deeply"),
        (f"r: {DIGITS}\n", "lora/own.yaml: Exceeds the limit (4300 digits)"),
        (BOMB, "lora/own.yaml: malformed YAML (aliases of aliases without end)"),
        ("r: !function x.y\n", "lora/own.yaml, line 1: malformed YAML (could not determine a con"),
        ("defaults: 3\n", "lora/own.yaml: Invalid defaults list"),
        ("defaults: [nosuch]\n", "lora = 'nosuch': no such choice"),
        ("defaults: [own]\n", "nested too deeply, or a defaults list that has its own file in it"),
        ("# @package [\nr: 4\n", "lora/own.yaml: malformed # @package line"),
        ("rr: 3\n", "lora/own.yaml: lora.rr: no such setting; did you mean r?"),
        ("r: many\n", "lora.r = 'many': must be a whole number; in lora/own.yaml"),
        ("r: yes\n", "lora.r = 'True': must be a whole number; in lora/own.yaml"),
        ("r: ???\n", "lora.r = '???': has to be given: lora.r=VALUE"),
        ("r: ${nosuch.x}\n", "lora.r = '${nosuch.x}': Interpolation key 'nosuch.x' not found"),
    ],
)
def test_a_broken_file_of_settings_is_named(
    content: str | bytes, said: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(elsewhere, "lora/own.yaml", content)
    assert said in failure(capsys, "--config-dir", "mine", "lora=own")


def test_what_a_file_leaves_open_can_be_given(elsewhere: Path) -> None:
    """Although the schema has a default: ??? says that it will not do."""
    own(elsewhere, "lora/open.yaml", "r: ???\n")
    own(elsewhere, "lora/given.yaml", "defaults: [open]\nr: 5\n")
    folder = "hydra.searchpath=[file://mine]"
    assert one(folder, "lora=open", "lora.r=4").lora.r == 4
    assert one(folder, "lora=given").lora.r == 5
    with pytest.raises(FtsuiteError, match=r"lora\.r = '\?\?\?'"):
        one(folder, "lora=open")
    with pytest.raises(FtsuiteError, match=r"lora\.r = '\?\?\?'"):
        sweeper.compose([folder, "lora=given,open"])


def test_a_file_that_would_be_hidden_by_ours_is_refused(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(elsewhere, "lora/qv.yaml", "r: 4\n")
    assert one("hydra.searchpath=[file://mine]", "lora=default").lora.r == 8
    line = failure(capsys, "--config-dir", "mine", "lora=qv")
    assert "mine/lora/qv.yaml: the suite has a file of this name" in line
    own(elsewhere, "config.yaml", "lora: {r: 4}\n")
    assert "mine/config.yaml: it would not be read" in failure(capsys, "--config-dir", "mine")


def test_a_sweeps_file_must_say_its_package(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own(elsewhere, "sweep/own.yaml", "hydra: {sweeper: {params: {lora.r: '3,5'}}}\n")
    line = failure(capsys, "--config-dir", "mine", "+sweep=own")
    assert "a sweep's file begins with # @package _global_" in line


def test_no_file_of_ours_is_broken() -> None:
    assert conf_dir().is_dir()
    assert one().lora.r == 8
