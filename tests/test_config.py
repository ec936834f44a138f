"""The schema: what is identity, what every field says of itself, and which values are refused."""

from __future__ import annotations

import ast
import dataclasses
import json
import types
import typing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny import conversation, write_jsonl

from ftsuite import config as schema
from ftsuite import stages
from ftsuite.choices import Source
from ftsuite.config import ModelConfig, RunConfig
from ftsuite.devices import Target
from ftsuite.errors import ConfigError
from ftsuite.models.sources import Base
from ftsuite.records import ModelIdentity
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
    "evals.held_out",
    "evals.add",
    "evals.remove",
    "evals.generate_limit",
    "evals.max_new_tokens",
    # Read when results are compared, after the last stage.
    "evals.rank_by",
    "evals.rank_on_test",
    "evals.headline",
    "evals.watch",
    "gates.max_worse",
    "gates.alpha",
    "gates.fail_run",
}
"""Identity of the run, but of none of its stages: changing one computes nothing again."""

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
def test_stage_keys_change_with_every_field_that_can_change_their_result(
    name: str, tmp_path: Path
) -> None:
    """With a fixed base model, device and source: those enter by what they turn out to be."""
    rows = write_jsonl(tmp_path / "rows.jsonl", [conversation("question", "answer")])
    before, after = ready(rows), ready(rows)
    if name == "evals.tasks":
        after.evals.tasks = ["prose_bpb", "intent_exact"]
    elif name == "probes.files":
        after.probes.files = ["pirate", "json_only"]
    else:
        changed(after, name)
    same = stage_keys(before, tmp_path) == stage_keys(after, tmp_path)
    assert same == (name in NOT_IDENTITY | NAMES_A_RUN | CHANGES_NO_STAGE)


def ready(rows: Path) -> RunConfig:
    config = run()
    config.data.train = str(rows)
    config.evals.tasks, config.probes.files = ["prose_bpb"], ["pirate"]
    return config


def stage_keys(config: RunConfig, folder: Path) -> list[str]:
    origin = ModelIdentity(id="tiny", source="folder", revision="0" * 64)
    compute, base = Target(device="cpu", dtype="float32"), Base(identity=origin, folder=folder)
    return [spec.key for _, spec in stages.chain(config, compute, base, folder, "cell").named()]


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
    ("train.shard_bytes", 0),
    ("train.fidelity_items", 0),
    ("train.fidelity_tolerance", -1.0),
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
