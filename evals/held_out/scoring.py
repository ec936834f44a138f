"""How the tasks that ftsuite builds from held-out rows score an answer.

lm-eval calls these as a task's `process_results`: (document, results) → metric → value. The file is
copied beside the tasks' YAML, so it imports nothing of ftsuite and lm_eval's CLI runs it too.
"""

import json
import re
from collections import Counter
from decimal import Decimal

NUMBER = re.compile(
    r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3})?|[+-]?\.\d+"
)
MINUS = {0x2212: "-"}
"""The sign that typesetting uses for minus."""
WORDS = r"[\p{L}\p{M}\p{N}_]+|[^\s\p{P}\p{L}\p{M}\p{N}]"
"""Words of any script with their combining marks, and single signs such as + and emoji."""


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

    none = dict.fromkeys(("json_valid", "json_schema", "json_fields", "json_equal"), 0.0)
    try:
        answer = json.loads(results[0], parse_constant=_refuse, object_pairs_hook=_without_repeats)
        if not isinstance(answer, (dict, list)):
            return none
        given = Counter(_leaves(answer))
        fits = Draft202012Validator(json.loads(doc["schema"])).is_valid(answer)
    except (ValueError, RecursionError):
        return none
    expected = Counter(_leaves(json.loads(doc["expected"])))
    shared = (expected & given).total()
    return {
        "json_valid": 1.0,
        "json_schema": float(fits),
        "json_fields": 2 * shared / (expected.total() + given.total()),
        "json_equal": float(expected == given),
    }


def number_scores(doc, results):
    """Does the answer's last number equal the expected one, within the relative tolerance?"""
    given, wanted = last_number(results[0]), last_number(doc["expected"])
    return {
        "number_equal": float(given is not None and _equal(given, wanted, doc["tolerance"])),
        "number_given": float(given is not None),
    }


def text_scores(doc, results):
    """ROUGE-L's F-measure (Lin 2004, with stemming off) and chrF's pair of texts."""
    import regex
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        """rouge-score's own tokenizer drops all but a-z and 0-9."""

        def tokenize(self, text):
            return regex.findall(WORDS, text.casefold())

    expected, answer = doc["expected"], results[0]
    found = RougeScorer(["rougeL"], tokenizer=Words()).score(expected, answer)["rougeL"]
    rouge = 1.0 if expected.strip() == answer.strip() else found.fmeasure
    return {"rouge_l": rouge, "chrf": (expected, answer)}


def last_number(text):
    """The last number in a text, thousands separated by commas or not; None without one."""
    found = NUMBER.findall(text.translate(MINUS))
    return Decimal(found[-1].replace(",", "")) if found else None


def _equal(one, other, tolerance):
    """Whether two numbers differ by no more than the tolerance, relative to the larger one.

    Decimal, for an endless run of digits would be infinite as a float, and equal to anything.
    """
    return abs(one - other) <= Decimal(str(tolerance)) * max(abs(one), abs(other))


def _refuse(constant):
    raise ValueError(f"{constant} is no JSON")


def _without_repeats(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key twice")
    return dict(pairs)


def _leaves(value, path=()):
    """Every value with the path to it; Python would find True and 1 equal, JSON does not."""
    if isinstance(value, dict) and value:
        return [leaf for key in value for leaf in _leaves(value[key], (*path, key))]
    if isinstance(value, list) and value:
        return [leaf for n, item in enumerate(value) for leaf in _leaves(item, (*path, n))]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # 3 and 3.0 are one number in JSON.
        return [(path, "number", value)]
    return [(path, "value", json.dumps(value))]
