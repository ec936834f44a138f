"""The checks of a probe's answer: what passes, what does not, and which settings are refused."""

from __future__ import annotations

import datetime
from typing import Any

import pytest

from ftsuite.errors import DataError
from ftsuite.scoring import checks

PIRATE = {"kind": "words", "any_of": ["arr", "yo ho", "ye", "it's"], "min_count": 1}


@pytest.mark.parametrize(
    ("spec", "answer", "passes"),
    [
        (PIRATE, "Arr, matey!", True),
        (PIRATE, "ARR", True),
        (PIRATE, "yo ho, yo ho", True),
        (PIRATE, "See, it's here", True),
        (PIRATE, "The array is sorted, yes", False),
        (PIRATE, "yo-ho", False),
        (PIRATE, "", False),
        (PIRATE | {"min_count": 2}, "arr arr arr", False),
        (PIRATE | {"min_count": 2}, "arr, where be ye", True),
        # A word of the list is text, not a pattern.
        ({"kind": "words", "any_of": ["a.b"]}, "axb", False),
        ({"kind": "words", "any_of": ["a.b"]}, "see a.b!", True),
        ({"kind": "regex", "pattern": r"\d{3}"}, "in 1999", True),
        ({"kind": "regex", "pattern": r"^\d+$"}, "in 1999", False),
        ({"kind": "json"}, '{"answer": 1}', True),
        ({"kind": "json"}, ' {"answer": 1}\n', True),
        ({"kind": "json"}, 'Sure: {"answer": 1}', False),
        ({"kind": "json"}, '```json\n{"answer": 1}\n```', False),
        ({"kind": "json"}, "[1]", False),
        ({"kind": "json"}, "", False),
        ({"kind": "json", "required_keys": ["answer"]}, '{"answer": null, "b": 1}', True),
        ({"kind": "json", "required_keys": ["answer"]}, '{"Answer": 1}', False),
        ({"kind": "length"}, "one", True),
        ({"kind": "length"}, " \n", False),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one", False),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two", True),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two three", True),
        ({"kind": "length", "min_words": 2, "max_words": 3}, "one two three four", False),
    ],
)
def test_an_answer_passes_or_not(spec: dict[str, Any], answer: str, passes: bool) -> None:
    assert checks.build(spec, "probe x")(answer) is passes


NEVER = {"kind": "none_of", "words": ["sorry", "I can't", "as an AI"]}


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("Aye, that be Paris.", True),
        ("Sorry, no.", False),
        ("SORRY", False),
        # Whole words alone, as in `words`.
        ("A sorrysome tale", True),
        ("I can't do that", False),
        ("I can’t do that", False),
        ("I can not do that", True),
        ("As an\nAI model", False),
    ],
)
def test_none_of_its_words_may_occur(answer: str, passes: bool) -> None:
    assert checks.build(NEVER, "probe x")(answer) is passes


@pytest.mark.parametrize(
    ("word", "answer", "found"),
    [
        # Scripts without spaces between words: a phrase stands inside of longer text.
        ("船长", "我是船长。", True),
        ("船长", "我是水手。", False),
        ("船長", "私は船長です", True),
        ("สวัสดี", "พูดสวัสดีครับ", True),
        ("Пират", "я пират!", True),
        ("пират", "пираты", False),
        ("C++", "I like C++.", True),
        ("STRASSE", "strasse", True),
    ],
)
def test_words_of_other_scripts_are_found(word: str, answer: str, found: bool) -> None:
    assert checks.build({"kind": "words", "any_of": [word]}, "probe x")(answer) is found
    assert checks.build({"kind": "none_of", "words": [word]}, "probe x")(answer) is not found


# --- no answer at all -----------------------------------------------------------------------

SENTENCE = "I am a pirate, and I sail the seven seas. "
LOOPS = [
    # Greedy answers of SmolLM2-135M-Instruct, to the token limit: to "Say yes.", "Laugh." and such.
    "I'm a pirate, " * 12,
    "Aye, " * 40 + "a",
    "Oh, the joy of life,\nA moment of pure bliss,\n" + "A moment of joy,\n" * 20 + "A moment",
    "1" + "0" * 150,
    "The the the the the the the the\n\nThe the the\n\nThe the\n\nThe",
    # By hand.
    "the the the the the the",
    "ahoy " * 20,
    "Ahoy, matey! " * 8,
    SENTENCE * 5,
    SENTENCE * 4 + SENTENCE[:17],
    "I am a captain of the Jolly. " + "The crew is here. " * 9,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,",
    "好的" * 20,
    "да " * 20,
    "yes\n" * 10,
    "arr arr arr arr arr arr.",
    "- fish\n" * 12,
    "😀" * 40,
    '{"a": "b"}, ' * 10,
]
NORMAL = [
    "Paris",
    "No",
    "7",
    "Ω",
    "👍",
    "∞",
    "是",
    "{}",
    "[]",
    "No, no, no, no!",
    "Ha ha ha!",
    "Arrrrrrrrr!",
    "3.333333333333333",
    "1,000,000,000,000",
    "555-555-5555",
    "Name: ________",
    "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]",
    "[[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]",
    "- apples\n- pears\n- plums\n- cherries\n- grapes",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25",
    "2 x 1 = 2\n2 x 2 = 4\n2 x 3 = 6\n2 x 4 = 8\n2 x 5 = 10\n2 x 6 = 12\n2 x 7 = 14",
    '{"answer": "yes", "confidence": 0.9}',
    '[{"x": 0, "y": 0}, {"x": 0, "y": 1}, {"x": 1, "y": 0}, {"x": 1, "y": 1}]',
    '{"a": {"b": {"c": {"d": {"e": {}}}}}}',
    "def f(n):\n    if n:\n        return [\n            [],\n            [],\n        ]",
    "<ul>\n<li>a</li>\n<li>b</li>\n<li>c</li>\n</ul>\n</div>\n</div>\n</div>\n</div>\n</div>",
    "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |",
    "The ship has sailed\n===================\n\nIt left at dawn.",
    # A chorus sung three times behind its verse; and one that is the whole answer.
    "The rain came down on roof and wall,\nand nobody was home at all.\n"
    + "Rain, rain, come again!\n" * 3,
    "Row on, row on, my lads!\n" * 3,
    "The sea is grey,\nsing ho, sing hey!\nThe sky is blue,\nsing ho, sing hey!\nThe sun is red,\n"
    "sing ho, sing hey!\nAnd off to bed,\nsing ho, sing hey!",
    "Happy birthday to you, happy birthday to you, happy birthday dear Ann, happy birthday to you!",
    "Я пират, и я плыву по семи морям. Мой корабль быстрый, моя команда верная.",
    "我是一个海盗，我在七海上航行。我的船很快，我的船员很忠诚。",
    "أنا قرصان، أبحر في البحار السبعة مع طاقمي المخلص.",
    "मैं एक समुद्री डाकू हूँ और मैं सात समुद्रों में घूमता हूँ।",
    "الحمد لله. الحمد لله. الحمد لله.",
]


@pytest.mark.parametrize("answer", ["", " \n\t", "\u200b\u200b", "\x00", "\ufeff "])
def test_an_answer_without_a_visible_character_is_empty(answer: str) -> None:
    assert checks.no_answer(answer) == "empty"


@pytest.mark.parametrize("answer", [".", "...", "?!", "-", "…", "。。", "***", '"" ', "| |", "~~"])
def test_punctuation_alone_is_degenerate(answer: str) -> None:
    assert checks.no_answer(answer) == "degenerate"


@pytest.mark.parametrize("answer", LOOPS)
def test_a_loop_is_degenerate(answer: str) -> None:
    assert checks.no_answer(answer) == "degenerate"


@pytest.mark.parametrize("answer", NORMAL)
def test_a_normal_answer_is_an_answer(answer: str) -> None:
    assert checks.no_answer(answer) == ""


def test_a_loop_counts_from_four_times_and_half_of_the_answer_on() -> None:
    verse = "Four winds, three masts and two old sailors on a boat, and one of them could sing."
    phrase = " Heave away, my jolly boys"
    for times, found in ((3, ""), (4, "degenerate")):
        assert checks.no_answer(phrase * times) == found
        assert checks.no_answer(phrase * times + "!") == found
    # The last one may be cut, from its half on.
    assert checks.no_answer(phrase * 3 + phrase[:12]) == ""
    assert checks.no_answer(phrase * 3 + phrase[:16]) == "degenerate"
    assert len(verse) < 4 * len(phrase)
    assert checks.no_answer(verse + phrase * 4) == "degenerate"
    assert checks.no_answer(2 * verse + phrase * 4) == ""
    # What closes behind its repeats did not run to the token limit.
    assert checks.no_answer(phrase * 9 + ", sang the crew") == ""


def test_long_answers_take_no_time() -> None:
    import time

    started = time.monotonic()
    assert checks.no_answer("ab" * 20_000 + "c") == ""
    assert checks.no_answer(" ".join(map(str, range(20_000)))) == ""
    assert time.monotonic() - started < 5


# --- wrong entries --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("wrods", "checks[3].kind: is the text 'wrods'"),
        ("", "checks[3].kind: is the text ''"),
        (None, "checks[3].kind: is nothing (null)"),
        (3, "checks[3].kind: is the number 3"),
        (["words"], "checks[3].kind: is a list"),
        (True, "checks[3].kind: is the truth value true"),
    ],
)
def test_an_unknown_kind_is_refused(kind: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        checks.build({"kind": kind}, "probe x", "checks[3]")
    assert str(caught.value) == f"{said}; choose one of words, none_of, regex, json, length"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "checks[0].kind: the key is missing; choose one of words"),
        ("words", "checks[0]: must be a mapping with kind and its keys, and is the text 'words'"),
        ({"kind": "words"}, "checks[0]: the key any_of is missing; write any_of: …"),
        # One word where a list belongs would check for its letters.
        (
            {"kind": "words", "any_of": "arr"},
            "checks[0].any_of: must be a list of texts, and is the text 'arr'; write any_of: "
            "['arr'], or each on a line",
        ),
        ({"kind": "words", "any_of": None}, "any_of: must be a list of texts, and is nothing"),
        ({"kind": "words", "any_of": {"arr": 1}}, "and is a mapping; put a hyphen before each"),
        (
            {"kind": "words", "any_of": ["arr"], "min_count": "1"},
            "checks[0].min_count: must be a whole number, and is the text '1'; write it without",
        ),
        ({"kind": "words", "any_of": ["a"], "min_count": True}, "and is the truth value true"),
        (
            {"kind": "words", "any_of": ["arr"], "min_cuont": 1},
            "checks[0]: there is no key 'min_cuont'; did you mean min_count? The keys are kind,",
        ),
        ({"kind": "words", "anyof": ["arr"]}, "no key 'anyof'; did you mean any_of?"),
        (
            {"kind": "words", "none_of": ["arr"]},
            "words has no key 'none_of', its list is called any",
        ),
        (
            {"kind": "none_of", "any_of": ["arr"]},
            "none_of has no key 'any_of', its list is called w",
        ),
        ({"kind": "none_of", "none_of": ["arr"]}, "its list is called words"),
        ({"kind": "none_of"}, "checks[0]: the key words is missing"),
        ({"kind": "none_of", "words": []}, "checks[0].words: the list is empty"),
        # YAML's `any_of: [ahoy, yes, no, 7, 2001-02-03, , a: b]`.
        (
            {"kind": "words", "any_of": ["ahoy", True]},
            "checks[0].any_of[1]: must be a text, and is the truth value true, as which YAML reads "
            'yes, on and true without quotes; put the word in quotes, such as "yes"',
        ),
        (
            {"kind": "none_of", "words": [False]},
            "words[0]: must be a text, and is the truth value f",
        ),
        (
            {"kind": "words", "any_of": [7]},
            "checks[0].any_of[0]: must be a text, and is the number 7, as it has no quotes; write "
            '"7"',
        ),
        (
            {"kind": "words", "any_of": [datetime.date(2001, 2, 3)]},
            "any_of[0]: must be a text, and is the date 2001-02-03, as it has no quotes",
        ),
        ({"kind": "words", "any_of": [None]}, "any_of[0]: must be a text, and is nothing (null)"),
        (
            {"kind": "words", "any_of": [{"a": "b"}]},
            "a mapping, which a colon before a space makes",
        ),
        (
            {"kind": "regex", "pattern": "("},
            "checks[0].pattern: '(' is no regular expression (miss",
        ),
        ({"kind": "regex", "pattern": 7}, "checks[0].pattern: must be a text, and is the number 7"),
        ({"kind": "json", "required_keys": "answer"}, "required_keys: must be a list of texts"),
        ({"kind": "length", "max_words": 2.5}, "max_words: must be a whole number, and is the num"),
        ({"kind": "length", "max": 2}, "no key 'max'; did you mean max_words?"),
        ({"kind": "json", True: 2}, "there is no key 'True'; The keys are kind, required_keys"),
    ],
)
def test_a_wrong_setting_is_named(spec: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        checks.build(spec, "probe x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Input should" not in str(caught.value)
