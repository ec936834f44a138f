"""`ftsuite example`: a small data file of a kind, to try the suite on before one's own is ready."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftsuite.errors import DataError
from ftsuite.resources import find_file

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable

ROWS = 200
CLASSES = ("address", "cancel", "fault", "hours", "login", "price", "return", "stock")
GOODS = {
    "lamp": "lighting",
    "kettle": "kitchen",
    "rucksack": "outdoors",
    "blanket": "home",
    "candle": "lighting",
    "pan": "kitchen",
    "tent": "outdoors",
    "cushion": "home",
}
COLOURS = ("red", "blue", "green", "grey", "yellow", "black")
CARRIERS = ("Brightway", "Northpost", "Quickbox", "Harbour Mail")
CAUSES = ("a storm", "a full depot", "a broken van", "a public holiday", "a wrong address")
OPENINGS = (
    "Your order {number} of {count} {colour} {goods}s is {days} days late.",
    "The {count} {colour} {goods}s of your order {number} will reach you {days} days late.",
    "We write about order {number}: your {colour} {goods}s are {days} days behind.",
    "Order {number} is late by {days} days, and you should hear why.",
)
REMARKS = (
    "The reason is {cause}.",
    "{carrier} had to wait because of {cause}.",
    "They are on their way to {town} now.",
    "{carrier} will bring them to {town} as soon as it can.",
    "All {count} {goods}s come in one parcel.",
    "You need not do anything.",
)
CLOSINGS = (
    "We are sorry for the wait.",
    "Please accept our apology.",
    "Thank you for your patience.",
    "If you no longer need them, tell us and we refund the whole price.",
)
TOWNS = ("Aldmere", "Bexford", "Corrin", "Dunvale", "Eastholm", "Fernby")


def example(options: Namespace) -> int:
    """Write a data file, and say what is in it and what to do with it."""
    path = Path(options.file)
    if path.exists():
        raise DataError(f"{path}: is there already; name another file")
    rows = KINDS[options.kind](random.Random(0))[: options.rows]
    if path.suffix == ".csv":
        text = _as_csv(rows)
    elif path.suffix == ".jsonl":
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    else:
        raise DataError(f"{path}: name it .csv or .jsonl")
    path.write_text(text, encoding="utf-8", newline="")
    print(f"{path}: {len(rows)} rows, columns {', '.join(rows[0])}")
    print(f"next: ftsuite preview data=file data.train={path}")
    return 0


def _as_csv(rows: list[dict[str, Any]]) -> str:
    if any(not isinstance(value, str) for row in rows for value in row.values()):
        raise DataError("messages fit no CSV; name the file .jsonl")
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def labels(seeded: random.Random) -> list[dict[str, Any]]:
    """Customer messages of the demo's set and their label: text, label."""
    source = find_file("evals/intent/train.jsonl")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    seeded.shuffle(rows)
    each = ROWS // len(CLASSES)
    picked = [row for label in CLASSES for row in [r for r in rows if r["label"] == label][:each]]
    seeded.shuffle(picked)
    return [{"text": row["text"], "label": row["label"]} for row in picked]


def text(seeded: random.Random) -> list[dict[str, Any]]:
    """Facts of a late order and the message to the customer: instruction, input, output."""
    rows = []
    for order in _orders(seeded):
        facts = f"Order {order['number']}: {order['count']} {order['colour']} {order['goods']}s, "
        facts += f"{order['days']} days late because of {order['cause']}, "
        sentences = [seeded.choice(OPENINGS), *seeded.sample(REMARKS, 2), seeded.choice(CLOSINGS)]
        rows.append(
            {
                "instruction": "Write the message to the customer.",
                "input": f"{facts}carrier {order['carrier']}, to {order['town']}.",
                "output": " ".join(sentences).format(**order),
            }
        )
    return rows


def answers_in_json(seeded: random.Random) -> list[dict[str, Any]]:
    """An order in words and its fields as JSON: question, answer."""
    rows = []
    for order in _orders(seeded):
        question = (
            f"Please send {order['count']} {order['goods']}s in {order['colour']} to "
            f"{order['town']}, with {order['carrier']} if you can."
        )
        fields = {name: order[name] for name in ("goods", "colour", "count", "town")}
        rows.append({"question": question, "answer": json.dumps(fields)})
    return rows


def numbers(seeded: random.Random) -> list[dict[str, Any]]:
    """A small sum in words and its result: question, answer."""
    rows = []
    for order in _orders(seeded):
        price = seeded.randrange(3, 40)
        question = f"{order['count']} {order['goods']}s at {price} crowns each: how many crowns?"
        rows.append({"question": question, "answer": str(price * order["count"])})
    return rows


def chat(seeded: random.Random) -> list[dict[str, Any]]:
    """Two-turn conversations of a shop with a group: messages, department."""
    rows = []
    for order in _orders(seeded):
        goods, colour = order["goods"], order["colour"]
        messages = [
            ("system", "You serve customers of a small shop. Be short and friendly."),
            ("user", f"Hello, do you have a {goods} in {colour}?"),
            ("assistant", f"Yes, we have {order['count']} {colour} {goods}s."),
            ("user", f"Good, please send one to {order['town']}."),
            (
                "assistant",
                f"Gladly. {order['carrier']} brings your {colour} {goods} to {order['town']} in "
                f"{order['days']} days.",
            ),
        ]
        rows.append(
            {
                "messages": [{"role": role, "content": said} for role, said in messages],
                "department": GOODS[goods],
            }
        )
    return rows


def _orders(seeded: random.Random) -> list[dict[str, Any]]:
    return [
        {
            "number": 1000 + 7 * place,
            "goods": seeded.choice(list(GOODS)),
            "colour": seeded.choice(COLOURS),
            "count": seeded.randrange(2, 30),
            "days": seeded.randrange(2, 12),
            "cause": seeded.choice(CAUSES),
            "carrier": seeded.choice(CARRIERS),
            "town": seeded.choice(TOWNS),
        }
        for place in range(ROWS)
    ]


KINDS: dict[str, Callable[[random.Random], list[dict[str, Any]]]] = {
    "labels": labels,
    "text": text,
    "json": answers_in_json,
    "numbers": numbers,
    "chat": chat,
}
