"""Which columns are taken for what."""

from __future__ import annotations

import pytest

from ftsuite.choices import Shape
from ftsuite.config import ColumnsConfig
from ftsuite.data import columnnames
from ftsuite.data.columns import find_layout, with_row
from ftsuite.errors import DataError


def layout_of(names, shape=Shape.auto, group=None, **columns):
    return find_layout(names, shape, ColumnsConfig(**columns), "a.csv", group=group)


def pair_of(layout):
    """The columns of the question and of the answer."""
    fields = {
        Shape.prompt_completion: ("prompt", "completion"),
        Shape.question_answer: ("question", "answer"),
        Shape.dolly: ("instruction", "response"),
    }[layout.shape]
    return [getattr(layout.columns, field) for field in fields]


def fails(names, **options):
    with pytest.raises(DataError) as caught:
        layout_of(names, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        ("text,label", "text,label"),
        ("text,category", "text,category"),
        ("sentence,label", "sentence,label"),
        ("review,sentiment", "review,sentiment"),
        ("utterance,intent", "utterance,intent"),
        ("Question,Answer", "Question,Answer"),
        ("ID,PROMPT,COMPLETION", "PROMPT,COMPLETION"),
        ("article,summary", "article,summary"),
        ("article,highlights,id", "article,highlights"),
        ("prompt,response", "prompt,response"),
        ("input,output", "input,output"),
        ("Review Text,Class", "Review Text,Class"),
        ("review_id,review,sentiment,date", "review,sentiment"),
        ("customer_message,intent_label", "customer_message,intent_label"),
        ("userMessage,agentReply", "userMessage,agentReply"),
        ("label,text", "text,label"),
        ("text,labels", "text,labels"),
        ("1,2", "1,2"),
    ],
)
def test_one_question_and_one_answer_are_found_and_said(names, pair):
    layout = layout_of(names.split(","))
    question, answer = pair.split(",")
    assert pair_of(layout) == [question, answer]
    assert layout.notes == (f"{question!r} is the question, {answer!r} the answer",)


def test_the_usual_names_need_no_note():
    for names in ("prompt,completion,id", "question,answer", "instruction,output", "text"):
        layout = layout_of(names.split(","))
        assert layout.notes == () and layout.columns == ColumnsConfig()


def test_dolly_in_other_letters():
    layout = layout_of(["Instruction", "Input", "Output"])
    assert layout.shape == Shape.dolly
    said = "'Instruction' is the question, 'Input' its context, 'Output' the answer"
    assert layout.notes == (said,)
    assert layout.used(["Instruction", "Input", "Output", "x"]) == {
        "Instruction",
        "Input",
        "Output",
    }
    plain = layout_of(["instruction", "output"])
    assert plain.used(["instruction", "context", "input", "output"]) == {
        "instruction",
        "context",
        "output",
    }


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("text,title,label", "the column 'label' looks like an answer, but would not be trained"),
        ("text,label,label_text", "data.columns.prompt=text data.columns.completion=label"),
        ("text,label,category", "the column 'label' looks like an answer"),
        ("sentence1,sentence2,label", "'sentence1', 'sentence2' all look like the question"),
        ("query,document,label", "data.columns.prompt=query data.columns.completion=label, or oth"),
        (
            "Category,Question,Best Answer,Correct Answers",
            "'Category', 'Best Answer', 'Correct Answers' all look like the answer",
        ),
        ("premise,hypothesis,label", "fit no known shape"),
        ("first name,answer", "'data.columns.prompt=first name' data.columns.completion=answer"),
        ("question,choices,answer", "the column 'choices' looks like a part of the question"),
        ("context,Question,Answer", "the column 'context' looks like a part of the question"),
        ("a,b,c", "such as data.shape=prompt_completion"),
    ],
)
def test_what_is_not_plain_is_refused_with_the_remedy(names, said):
    message = fails(names.split(","))
    assert message.startswith("a.csv: ") and said in message


def test_a_column_that_is_set_goes_first():
    layout = layout_of(["text", "title", "label"], prompt="title")
    assert pair_of(layout) == ["title", "label"]
    layout = layout_of(["Category", "Question", "Best Answer"], answer="Best Answer")
    assert (layout.shape, pair_of(layout)) == (
        Shape.question_answer,
        ["Question", "Best Answer"],
    )
    # As it is written, in no other letters.
    assert "data.columns.text = 'TEXT': no such column" in fails(["Text", "x"], text="TEXT")
    assert "there are 'prompt'" in fails(["prompt", "completion"], text="body")
    assert "looks like an answer" in fails(["body", "label"], text="body")


def test_a_shape_that_is_set_takes_the_pair_too():
    names = ["text", "label"]
    assert pair_of(layout_of(names, Shape.prompt_completion)) == names
    assert pair_of(layout_of(names, Shape.question_answer)) == names
    assert layout_of(names, Shape.text).columns.text == "text"


def test_the_column_of_the_groups_is_no_answer_where_another_is():
    names = ["text", "label", "category"]
    assert pair_of(layout_of(names, group="category")) == ["text", "label"]
    assert pair_of(layout_of(["text", "label"], group="label")) == ["text", "label"]


def test_sharegpt():
    layout = layout_of(["id", "conversations"])
    assert (layout.shape, layout.columns.messages) == (Shape.messages, "conversations")
    assert layout.notes == ("'conversations' holds the messages",)
    assert layout_of(["conversations", "messages"]).columns.messages == "messages"


def test_a_system_column_is_used_by_every_shape_with_turns():
    said = "'system' is the system message of its row"
    for names in ("prompt,completion", "question,answer", "instruction,output", "messages"):
        layout = layout_of([*names.split(","), "system"])
        assert (layout.system, layout.notes) == ("system", (said,))
    assert layout_of(["text", "system"]).system is None
    assert layout_of(["system", "answer"], prompt="system", completion="answer").system is None


def test_rows_with_other_columns():
    layout = layout_of(["question", "answer"])
    assert with_row(layout, ["answer", "question", "id"], Shape.auto, "b") == layout
    later = with_row(layout, ["question", "answer", "system"], Shape.auto, "b")
    assert later.system == "system" and len(later.notes) == 1
    with pytest.raises(DataError, match="b: no column 'answer', only 'question', 'x'; give every"):
        with_row(layout, ["question", "x"], Shape.auto, "b")
    with pytest.raises(DataError, match="'context' looks like a part of the question"):
        with_row(layout, ["question", "answer", "context"], Shape.auto, "b")
    chosen = layout_of(["question", "answer"], Shape.question_answer)
    assert with_row(chosen, ["question", "answer", "context"], Shape.question_answer, "b") == chosen


def test_many_columns_are_counted():
    assert columnnames.listed(range(12)).endswith("'9' and 2 more")
    assert columnnames.listed(["", "a"]) == "one without a name, 'a'"
    assert len(columnnames.listed(["x" * 1000])) < 100
