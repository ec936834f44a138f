"""How the tasks that ftsuite builds from held-out rows score an answer.

lm-eval calls these as a task's `process_results`: (document, results) → metric → value. The file is
copied beside the tasks' YAML, so it imports nothing of ftsuite and lm_eval's CLI runs it too.
"""

import json
import re

NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[+-]?\.\d+")


def answer_bits(doc, results):
    """Bits per byte of the right answer: its log-likelihood (nats) and its UTF-8 bytes."""
    ((log_likelihood, _),) = results
    return {"bits_per_byte": (log_likelihood, len(doc["answer"].encode()))}


def json_scores(doc, results):
    """Is the answer JSON, does it fit the schema of the data's answers, and how much is right?

    json_fields: F1 over the pairs of path and value, as for slots in semantic parsing; every value
    is compared as JSON, so 1 and 1.0 are equal and "1" is another.
    """
    from jsonschema import Draft202012Validator

    expected = _leaves(json.loads(doc["expected"]))
    try:
        answer = json.loads(results[0])
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, (dict, list)):
        return dict.fromkeys(("json_valid", "json_schema", "json_fields", "json_equal"), 0.0)
    given = _leaves(answer)
    shared = len(set(expected) & set(given))
    return {
        "json_valid": 1.0,
        "json_schema": float(Draft202012Validator(json.loads(doc["schema"])).is_valid(answer)),
        "json_fields": 2 * shared / (len(expected) + len(given)),
        "json_equal": float(sorted(map(repr, expected)) == sorted(map(repr, given))),
    }


def number_scores(doc, results):
    """Does the answer's last number equal the expected one, within the relative tolerance?"""
    given, wanted = last_number(results[0]), last_number(doc["expected"])
    is_equal = given is not None and abs(given - wanted) <= doc["tolerance"] * max(
        abs(given), abs(wanted)
    )
    return {"number_equal": float(is_equal), "number_given": float(given is not None)}


def text_scores(doc, results):
    """ROUGE-L's F-measure (Lin 2004, with stemming off) and chrF's pair of texts."""
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """Words of any script: rouge-score's own tokenizer drops all but a-z and 0-9."""

        def tokenize(self, text):
            return re.findall(r"\w+", text.casefold())

    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    found = scorer.score(doc["expected"], results[0])["rougeL"]
    return {"rouge_l": found.fmeasure, "chrf": (doc["expected"], results[0])}


def last_number(text):
    """The last number in a text, thousands separated by commas or not; None without one."""
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _leaves(value, path=()):
    """Every value with the path to it; Python would find True and 1 equal, JSON does not."""
    if isinstance(value, dict) and value:
        return [leaf for key in value for leaf in _leaves(value[key], (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for n, item in enumerate(value) for leaf in _leaves(item, (*path, n))]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # 3 and 3.0 are one number in JSON; beyond 2**53 a float would round.
        return [(path, "number", int(value) if value == value // 1 else value)]
    return [(path, "value", json.dumps(value))]
