from __future__ import annotations

import csv
import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ftsuite.data import duplicates, minhash

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="real rows: ../shared/data is not here"
)
REAL = ["intent", "dolly", "gsm8k", "truthfulqa"]
NAMES = (
    *("France", "Spain", "Germany", "Portugal", "Norway", "Peru", "Chile", "Egypt", "Kenya"),
    *("Japan", "Iceland", "Ghana", "North Korea", "South Korea", "the Netherlands"),
)
TEMPLATES = [
    "What is the capital of {}?",
    "How many people live in {}?",
    "Who won the election in {}?",
    "Can I pay with a card from {} in your shop?",
    "Translate the word {} into French.",
]


def real_questions(name):
    if name == "intent":
        lines = (ROOT / "evals/intent/train.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["text"] for line in lines]
    if name == "dolly":
        rows = json.loads((SHARED / "dolly_3k/dolly_3k.json").read_text(encoding="utf-8"))
        return [f"{row['instruction']}\n\n{row['input']}".strip() for row in rows]
    if name == "gsm8k":
        lines = (SHARED / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["question"] for line in lines]
    with (SHARED / "truthfulqa/TruthfulQA.csv").open(encoding="utf-8-sig", newline="") as file:
        return [row["Question"] for row in csv.DictReader(file)]


def asked(questions, answers=None):
    answers = answers or [str(n) for n in range(len(questions))]
    return [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one, other in zip(questions, answers, strict=True)
    ]


def groups(questions, threshold=0.8, answers=None):
    """The sets of places of equal or nearly equal questions."""
    found = duplicates.find(asked(questions, answers), threshold).of.tolist()
    places = {label: [] for label in found}
    for place, label in enumerate(found):
        places[label].append(place)
    return {tuple(group) for group in places.values()}


def together(questions, pairs, threshold=0.8):
    """Share of pairs that are in one group when the second ones are added to all questions."""
    found = duplicates.find(asked([*questions, *(b for _, b in pairs)]), threshold).of.tolist()
    of = dict(zip(questions, found, strict=False))
    later = found[len(questions) :]
    return sum(of[a] == label for (a, _), label in zip(pairs, later, strict=True)) / len(pairs)


def exhaustive(questions, threshold):
    """The same groups by comparing all with all, with sets of Python strings."""
    texts = [duplicates.normalise(question) for question in questions]
    shingles = {t: {f" {t} "[i : i + 4] for i in range(len(t) - 1)} for t in texts}
    counts = Counter(shingle for found in shingles.values() for shingle in found)
    common = {s for s, n in counts.items() if n > max(5, 0.05 * len(shingles))}
    rest = {text: found - common for text, found in shingles.items()}
    group = {text: {text} for text in rest}
    long = [text for text, found in rest.items() if len(found) >= 10]
    for one, other in itertools.combinations(long, 2):
        a, b = rest[one], rest[other]
        if group[one] is group[other] or min(len(a), len(b)) < threshold * max(len(a), len(b)):
            continue
        if len(a & b) >= threshold * len(a | b):
            group[one] |= group[other]
            for text in group[one]:
                group[text] = group[one]
    return {tuple(n for n, t in enumerate(texts) if t in group[text]) for text in rest}


# --- what is equal ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is my parcel?", "  where IS my\tparcel "),
        ("Well-known, isn't it?", "well known isn’t it"),
        ("Straße", "STRASSE"),
        ("ﬁne\u00a0print", "fine print"),
        ("I paid (twice)!!!", "i paid twice"),
    ],
)
def test_case_space_and_punctuation_make_no_difference(one, other):
    assert duplicates.normalise(one) == duplicates.normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2 + 2", "2 - 2"),
        ("7 * 3", "7 / 3"),
        ("Is it -5 outside?", "Is it 5 outside?"),
        ("Write it in C++", "Write it in C#"),
        ("😀", "😡"),
        ("???", "!"),
        ("कि", "की"),
        ("résumé", "resume"),
    ],
)
def test_signs_that_mean_something_stay(one, other):
    assert duplicates.normalise(one) != duplicates.normalise(other)


def test_a_threshold_of_one_joins_equal_questions_alone():
    questions = [
        "Why has my order number 4411 not been delivered to the shop in Leeds yet?",
        "why has my order number 4411 not been delivered to the shop in leeds yet",
        "Why has my order number 4411 not been delivered to the shop in Leeds?",
        "Do you sell blue teapots?",
    ]
    assert groups(questions, 1) == {(0, 1), (2,), (3,)}
    assert groups(questions, 0.8) == {(0, 1, 2), (3,)}


def test_all_user_turns_and_plain_text_are_compared():
    first = asked(["Hello there, who are you?"])[0]
    rows = [first + asked(["Sing me a song."])[0], first + asked(["Tell me a joke."])[0]]
    rows += [[{"role": "text", "content": "Once upon a time."}]]
    rows += [[{"role": "text", "content": "Once upon a time!"}]]
    found = duplicates.find(rows, 1).of
    assert found[0] != found[1] and found[2] == found[3]


# --- what is nearly equal ---------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_the_groups_are_those_of_comparing_all_with_all(name, threshold):
    questions = real_questions(name)[:500]
    draw, words = random.Random(0), " ".join(questions).split()
    changed = [one_word_changed(question, words, draw) for question in questions[:200]]
    expected = exhaustive([*questions, *changed], threshold)
    assert groups([*questions, *changed], threshold) == expected
    assert any(len(group) > 1 for group in expected)


def one_word_changed(question, words, draw):
    parts = question.split()
    parts[draw.randrange(len(parts))] = draw.choice(words)
    return " ".join(parts)


def measured_rates(name, count=300):
    """Share of planted pairs that are found together at 0.8, among all questions of a real set."""
    questions = list(dict.fromkeys(real_questions(name)))
    draw, words = random.Random(0), " ".join(questions).split()
    chosen = draw.sample([q for q in questions if len(q.split()) > 3], count)
    plants = {
        "case and punctuation": [(q, f"{q.upper().replace('?', '')} !") for q in chosen],
        "one word changed": [(q, one_word_changed(q, words, draw)) for q in chosen],
        "a sentence added": [
            # So few that the sentence does not count as common text.
            (q, f"{q} Thanks in advance for your help.")
            for q in chosen[:30]
        ],
    }
    return {plant: together(questions, pairs) for plant, pairs in plants.items()}


@needs_shared
@pytest.mark.parametrize(("name", "least"), [*zip(REAL, [0.45, 0.45, 0.95, 0.3], strict=True)])
def test_planted_near_duplicates_are_found(name, least):
    rates = measured_rates(name)
    assert rates["case and punctuation"] == 1
    assert rates["one word changed"] >= least


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_questions_that_differ_in_a_name_are_apart(name):
    questions = [q.format(n) for q in TEMPLATES for n in NAMES]
    found = groups([*real_questions(name), *questions])
    start = len(real_questions(name))
    planted = [group for group in found if len(group) > 1 and group[-1] >= start]
    assert planted == []


def test_an_instruction_around_each_question_does_not_count():
    instruction = (
        "You are a helpful assistant of a large shop. Read the customer's message with care and "
        "say in one word what it is about. The message of the customer is the following one: "
    )
    questions = real_questions("intent")[:200]
    assert len(groups([instruction + question for question in questions])) == 200
    short = [f"{instruction}{number}" for number in range(50)]
    found = duplicates.find(asked(short), 0.8)
    assert len(set(found.of.tolist())) == found.unlike == 50


def test_a_chain_is_one_group():
    words = [f"word{n:02}" for n in range(60)]
    links = [" ".join(words[start : start + 40]) for start in (0, 3, 6)]
    others = real_questions("intent")[:40]
    assert (0, 1, 2) in groups([*links, *others])
    assert (0, 1) in groups([links[0], links[2], *others], 0.6)
    assert (0, 1) not in groups([links[0], links[2], *others])


def test_the_groups_do_not_depend_on_the_order_of_the_rows():
    draw, questions = random.Random(1), real_questions("intent")[:300]
    words = " ".join(questions).split()
    questions += [one_word_changed(question, words, draw) for question in questions]
    expected = {frozenset(questions[n] for n in group) for group in groups(questions)}
    assert any(len(group) > 1 for group in expected)
    draw.shuffle(questions)
    assert {frozenset(questions[n] for n in group) for group in groups(questions)} == expected


def test_a_large_family_is_one_group():
    """More texts in a band than are compared in full."""
    base = " ".join(real_questions("intent")[:12])
    family = [f"{base} Case {number}." for number in range(300)]
    others = real_questions("intent")[20:] * 10
    others = [f"{question} {n // 620}" for n, question in enumerate(others)]
    found = groups([*family, *others])
    assert max(found, key=len) == tuple(range(300))


def test_another_process_finds_the_same():
    questions = real_questions("intent")[:100]
    questions += [f"{question} Please." for question in questions]
    code = (
        "import json, sys; from ftsuite.data import duplicates;"
        "print(duplicates.find(json.load(sys.stdin), 0.8).of.tolist())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(asked(questions)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert json.loads(done.stdout) == duplicates.find(asked(questions), 0.8).of.tolist()


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_few_pairs_at_the_threshold_are_not_proposed(threshold):
    rows = minhash.band_rows(threshold)
    missed = (1 - threshold**rows) ** (minhash.PERMUTATIONS // rows)
    assert missed < 2e-6


# --- questions that are mostly the same -------------------------------------------------------


def test_a_constant_question_joins_rows_that_are_wholly_equal():
    answers = real_questions("intent")[:100]
    found = duplicates.find(asked(["Write a message."] * 100, answers), 0.8)
    assert found.compared == "system messages, questions and answers"
    assert len(set(found.of.tolist())) == 100
    twice = duplicates.find(asked(["Write a message."] * 100, [*answers[:99], answers[0]]), 0.8)
    assert twice.of[0] == twice.of[99]


def with_system(texts, answers, question="Classify the text above."):
    rows = asked([question] * len(texts), answers)
    pairs = zip(texts, rows, strict=True)
    return [[{"role": "system", "content": text}, *row] for text, row in pairs]


@pytest.mark.parametrize("labels", [2, 25])
def test_a_text_in_the_system_message_tells_rows_apart(labels):
    texts = list(dict.fromkeys(real_questions("intent")))[:400]
    texts[399] = f"{texts[0].upper()}!"
    rows = with_system(texts, [f"label {n % labels}" for n in range(400)])
    found = duplicates.find(rows, 0.8)
    assert found.compared == "system messages and questions"
    assert found.of[0] == found.of[399]
    _, counts = np.unique(found.of, return_counts=True)
    assert len(counts) > 300 and max(counts) < 10


def test_a_constant_system_message_joins_no_rows_by_their_answer():
    """Near answers to one question need not be alike in anything else."""
    answers = [f"The text speaks of a late parcel to house number {n}." for n in range(100)]
    rows = with_system(["Be brief."] * 200, answers * 2)
    found = duplicates.find(rows, 0.8)
    assert found.compared == "system messages, questions and answers"
    assert len(set(found.of.tolist())) == 100
    assert found.of[:100].tolist() == found.of[100:].tolist()


def test_a_shared_answer_does_not_join_rows_with_other_system_messages():
    """Few systems over many rows: both parts are mostly constant."""
    texts = [f"You are assistant {n % 4}." for n in range(80)]
    found = duplicates.find(with_system(texts, [f"label {n // 4}" for n in range(80)]), 0.8)
    assert found.compared == "system messages, questions and answers"
    assert len(set(found.of.tolist())) == 80


# --- conversations that begin another ---------------------------------------------------------


def logged(chats, turns):
    """Conversations of real questions, each stored after every turn."""
    questions = list(dict.fromkeys(real_questions("intent")))[: chats * turns]
    rows = asked(questions)
    starts = range(0, chats * turns, turns)
    chain = itertools.chain.from_iterable
    return [list(chain(rows[at : at + n])) for at in starts for n in range(1, turns + 1)]


@pytest.mark.parametrize("threshold", [0.8, 1])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_a_conversation_is_with_its_beginnings(threshold, system):
    rows = logged(60, 3)
    if system:
        rows = [[{"role": "system", "content": system}, *row] for row in rows]
    found = duplicates.find(rows, threshold)
    labels = found.of.reshape(60, 3)
    assert (labels == labels[:, :1]).all()
    assert len(set(labels[:, 0].tolist())) > 50
    assert found.beginnings == 120
    order = random.Random(0).sample(range(180), 180)
    again = duplicates.find([rows[n] for n in order], threshold)
    assert again.of.tolist() == found.of[order].tolist()


def test_an_equal_first_question_with_another_answer_is_no_beginning():
    first, other = logged(1, 2)[0], logged(2, 2)[2]
    rows = [[first[0], {"role": "assistant", "content": "no"}], first + other]
    found = duplicates.find([*rows, *logged(20, 1)[4:]], 1)
    assert found.of[0] != found.of[1] and found.beginnings == 0


def test_a_greeting_does_not_join_all_that_follows_it():
    greeting = asked(["Hi"], ["Hello, how can I help?"])[0]
    chats = [greeting + row for row in logged(100, 1)]
    found = duplicates.find([greeting, *chats], 1)
    assert (found.greetings, found.beginnings) == (1, 0)
    assert len(set(found.of.tolist())) == 101
    few = duplicates.find([greeting, *chats[:5], *logged(100, 1)], 1)
    assert (few.greetings, few.beginnings) == (0, 1)
    assert len(set(few.of[:6].tolist())) == 1


def test_several_answers_to_each_question_do_not_make_it_an_instruction():
    questions = real_questions("intent")[:100] * 5
    found = duplicates.find(asked(questions), 0.8)
    assert found.compared == "questions"
    assert len(set(found.of.tolist())) == 100


def test_copies_of_rows_do_not_make_a_question_an_instruction():
    questions, answers = real_questions("intent")[:20], [str(n) for n in range(20)]
    found = duplicates.find(asked(questions * 30, answers * 30), 0.8)
    assert found.compared == "questions"
