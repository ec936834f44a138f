"""What lm-eval knows, as tables: a task's keys, metrics, aggregations and filters.

lm-eval is pinned exactly, and its registries take seconds to import, while a command line is
checked in milliseconds. tests/test_tasks.py compares every table with lm-eval's own.
"""

from __future__ import annotations

TASK_KEYS = frozenset(
    {
        "task",
        "task_alias",
        "tag",
        "custom_dataset",
        "dataset_path",
        "dataset_name",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "process_docs",
        "doc_to_text",
        "doc_to_target",
        "doc_to_image",
        "doc_to_audio",
        "unsafe_code",
        "doc_to_choice",
        "process_results",
        "use_prompt",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "fewshot_config",
        "num_fewshot",
        "metric_list",
        "output_type",
        "generation_kwargs",
        "repeats",
        "filter_list",
        "should_decontaminate",
        "doc_to_decontamination_query",
        "gen_prefix",
        "metadata",
    }
)
"""Fields of lm_eval.config.task.TaskConfig."""

STRUCTURE_KEYS = frozenset({"group", "tag", "task_list"})
"""Keys that lm-eval takes out before it builds a task."""

GROUP_KEYS = frozenset({"group", "group_alias", "task", "aggregate_metric_list", "metadata"})
"""Fields of lm_eval.config.group.GroupConfig; a group's other keys go to its tasks."""

METRICS: dict[str, tuple[str, bool]] = {
    "acc": ("mean", True),
    "acc_all": ("mean", True),
    "acc_bytes": ("mean", True),
    "acc_mutual_info": ("mean", True),
    "acc_norm": ("mean", True),
    "bits_per_byte": ("bits_per_byte", False),
    "bleu": ("bleu", True),
    "brier_score": ("brier_score", False),
    "bypass": ("bypass", True),
    "byte_perplexity": ("weighted_perplexity", False),
    "chrf": ("chrf", True),
    "chrf++": ("chrf++", True),
    "exact_match": ("mean", True),
    "f1": ("f1", True),
    "likelihood": ("mean", True),
    "mcc": ("matthews_corrcoef", True),
    "perplexity": ("perplexity", False),
    "ter": ("ter", False),
    "word_perplexity": ("weighted_perplexity", False),
}
"""lm-eval's registered metrics: default aggregation, and whether higher is better."""

AGGREGATIONS = frozenset(
    {
        "bits_per_byte",
        "bleu",
        "brier_score",
        "bypass",
        "chrf",
        "chrf++",
        "f1",
        "matthews_corrcoef",
        "mean",
        "median",
        "nanmean",
        "perplexity",
        "ter",
        "weighted_perplexity",
    }
)

DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "loglikelihood": ("perplexity", "acc"),
    "loglikelihood_rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
    "multiple_choice": ("acc", "acc_norm"),
    "generate_until": ("exact_match",),
}
"""Metrics of a task without a metric_list, by output type."""

COMPUTED: dict[str, frozenset[str]] = {
    "loglikelihood": frozenset({"perplexity", "acc"}),
    "loglikelihood_rolling": frozenset({"word_perplexity", "byte_perplexity", "bits_per_byte"}),
    "multiple_choice": frozenset(
        {
            "acc",
            "acc_bytes",
            "acc_mutual_info",
            "acc_norm",
            "brier_score",
            "exact_match",
            "f1",
            "likelihood",
            "mcc",
        }
    ),
}
"""What ConfigurableTask.process_results computes; any other metric of such a task is left out
without a word. Generated answers go to whatever function a metric names."""

GENERATION_METRICS = frozenset({"bleu", "bypass", "chrf", "chrf++", "exact_match", "ter"})
"""Registered metrics that take an answer and its reference."""

FILTERS = frozenset(
    {
        "custom",
        "format_span",
        "lowercase",
        "majority_vote",
        "map",
        "multi_choice_regex",
        "regex",
        "regex_pos",
        "remove_whitespace",
        "take_first",
        "take_first_k",
        "uppercase",
    }
)

GENERATION_TOKENS = 256
"""Longest generated answer where a task sets no limit (lm_eval's HFLM.max_gen_toks)."""
