"""One row, one problem: answers that name a choice, placeholders in words, and the reasons of those that do not fit."""

import math

import pytest

from pictures import png, sizes
from stages.errors import DataError
from stages.importing.cells import Unfit, as_list, cell, text
from stages.importing.images import ImageReader
from stages.importing.placeholders import Placeholders
from stages.importing.presets import Layout
from stages.importing.rows import ASK_FOR_LETTER, RowReader, right_letter
from stages.reward.answers import score_answer

ROW = {"question": "How many?", "images": [png()], "answer": "18"}


def problem(layout=None, **changes):
    return RowReader(layout or Layout(), ImageReader(None)).problem(ROW | changes)


def reason(layout=None, **changes):
    with pytest.raises(Unfit) as unfit:
        problem(layout, **changes)
    return str(unfit.value)


@pytest.mark.parametrize(
    ("images", "question", "expected"),
    [
        (1, "<image>Find x.", "Find x."),
        (1, "<image>\nFind x.", "Find x."),
        (1, "<IMAGE 1> Find x.", "Find x."),
        (1, "What is it? <image1>", "What is it?"),
        (1, "<image_1> shows a graph.", "image 1 shows a graph."),
        (1, "It is shown in <image 1>", "It is shown in image 1"),
        (1, "As <image 1>shows, and (<image 1>) too", "As image 1 shows, and (image 1) too"),
        (2, "<image><image>Compare.", "Compare."),
        (2, "<image 1> <image 2>\nCompare.", "Compare."),
        (2, "<image 2><image 1>Compare.", "image 2 image 1 Compare."),
        (2, "<image 1> Compare with <image 2>.", "image 1 Compare with image 2."),
        (2, "Is <image> larger than <image>?", "Is image 1 larger than image 2?"),
        (2, "Compare. <image><image>", "Compare."),
        (0, "No picture <images>", "No picture <images>"),
    ],
)
def test_placeholders_are_taken_out_or_put_in_words(images, question, expected):
    assert Placeholders(images).in_words(question) == expected


@pytest.mark.parametrize("question", ["<image 3> a", "<image 0> a", "<image><image><image>", "<image 999>"])
def test_a_placeholder_without_its_image_does_not_fit(question):
    assert reason(question=question, images=[png(), png()]) == "placeholder_without_image"


@pytest.mark.parametrize(
    ("answer", "form", "expected"),
    [
        ("B", "letter", "B"),
        ("(b)", "letter", "B"),
        ("B.", "letter", "B"),
        ("2", "index", "C"),
        ("002", "index", "C"),
        ("0" * 5000, "index", "A"),
        ("a  dog", "text", "A"),
        ("B", "text", "C"),
        ("a dog", "either", "A"),
        ("D", "either", "D"),
    ],
)
def test_the_right_choice_becomes_its_letter(answer, form, expected):
    assert right_letter(answer, ["a dog", "5", "B", "2"], form) == expected


@pytest.mark.parametrize(
    ("answer", "form", "why"),
    [
        ("E", "letter", "answer_not_a_choice"),
        ("a dog", "letter", "answer_not_a_choice"),
        ("4", "index", "answer_not_a_choice"),
        ("-1", "index", "answer_not_a_choice"),
        ("²", "index", "answer_not_a_choice"),
        ("", "index", "answer_not_a_choice"),
        ("9" * 5000, "index", "answer_not_a_choice"),
        ("A", "text", "answer_not_a_choice"),
        ("B", "either", "answer_ambiguous"),  # the letter of 5, and the text of C
        ("5", "text", "answer_ambiguous"),
    ],
)
def test_an_answer_that_names_no_choice_or_two_does_not_fit(answer, form, why):
    with pytest.raises(Unfit, match=why):
        right_letter(answer, ["a dog", "5", "B", "5"], form)


@pytest.mark.parametrize("choices", [["9", "18"], '["9", "18"]', "['9', '18']", ("9", "18", None), [9, 18.0]])
def test_choices_are_listed_in_the_question_and_their_letter_scores(choices):
    found = problem(Layout(choices=("options",)), options=choices)

    assert found["question"] == f"How many?\nA. 9\nB. 18\n{ASK_FOR_LETTER}"
    assert (found["answer"], found["choices"]) == ("B", ["9", "18"])
    for said, verdict in [("B", 1.0), ("(B)", 1.0), ("18", 1.0), ("A", 0.0), ("9", 0.0), ("A or B", 0.0)]:
        assert score_answer(rf"\boxed{{{said}}}", found["answer"], choices=found["choices"]) == verdict


def test_choices_in_columns_of_their_own():
    layout = Layout(choices=("A", "B", "C"))
    found = problem(layout, A="17", B="18", C=None)

    assert found["question"] == f"How many?\nA. 17\nB. 18\n{ASK_FOR_LETTER}"
    assert reason(layout, A=None, B="18", C="19") == "choices_unreadable"


@pytest.mark.parametrize("choices", [None, [], "[]", ""])
def test_without_choices_the_answer_stays(choices):
    found = problem(Layout(choices=("options",)), options=choices)

    assert (found["question"], found["answer"], found["choices"]) == ("How many?", "18", None)


@pytest.mark.parametrize("answer", ["[2, 5]", "(2, 5)", "[2, 5)"])
def test_a_text_in_brackets_is_one_answer(answer):
    assert problem(answer=answer)["answer"] == answer


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"options": "9, 18"}, "choices_unreadable"),
        ({"options": "[9, open('x')]"}, "choices_unreadable"),
        ({"options": "[" * 9000}, "choices_unreadable"),
        ({"options": ["18", " "]}, "choices_unreadable"),
        ({"options": [str(number) for number in range(11)]}, "choices_over_10"),
        ({"answer": None}, "answer_missing"),
        ({"answer": " "}, "answer_missing"),
        ({"answer": []}, "answer_missing"),
        ({"answer": float("nan")}, "answer_missing"),
        ({"answer": b"\xff2"}, "not_text"),
        ({"answer": {"value": 2}}, "not_text"),
        ({"answer": [["1"]]}, "not_text"),
        ({"answer": "[0x" + "f" * 9000 + "]"}, "not_text"),
        ({"options": r'["\ud800", "18"]'}, "not_text"),
        ({"question": [ROW["question"]]}, "not_text"),
        ({"answer": ["1", "2"]}, "answer_several"),
        ({"answer": "['1', '2']"}, "answer_several"),
        ({"question": None}, "question_missing"),
        ({"question": "<image>"}, "question_missing"),
        ({"images": None}, "image_missing"),
        ({"images": [png(), None]}, "image_missing"),
        ({"images": [{"bytes": None, "path": None}]}, "image_missing"),
        ({"images": [{"bytes": b"", "path": "a.png"}]}, "image_not_embedded"),
        ({"images": ["https://host/a.png"]}, "image_not_embedded"),
        ({"images": 5}, "image_missing"),
    ],
)
def test_the_reasons(changes, why):
    assert reason(Layout(choices=("options",)), **changes) == why


def test_ten_choices_fit():
    numbers = [str(number) for number in range(9, 19)]
    assert problem(Layout(choices=("options",)), options=numbers)["answer"] == "J"
    assert score_answer(r"\boxed{J}", "J") == 1.0


def test_several_image_columns_end_where_the_rest_is_null():
    layout = Layout(images=("one", "two", "three"))
    assert sizes(problem(layout, one=png(1, 1), two=png(2, 2), three=None)) == [(1, 1), (2, 2)]
    assert reason(layout, one=None, two=png(), three=None) == "image_missing"
    assert reason(layout, one=None, two=None, three=None) == "image_missing"


def test_a_list_without_images_is_a_problem_in_text():
    assert problem(images=[])["images"] == []
    assert reason(images=[], question="<image>How many?") == "placeholder_without_image"


def test_kind_is_text_or_null():
    assert problem(Layout(kind="level"), level=2.0)["kind"] == "2"
    assert problem(Layout(kind="level"), level=None)["kind"] is None


def test_ids_come_from_their_column_or_the_row_number():
    reader = RowReader(Layout(id="key"), ImageReader(None))

    assert RowReader(Layout(), ImageReader(None)).problem_id(12, ROW) == "row-0000012"
    assert reader.problem_id(0, {"key": 7}) == "7"
    assert reader.problem_id(1, {"key": None}) == "row-0000001"
    assert reason(Layout(id="key"), key=" ") == "id_missing"
    assert reader.problem_id(3, {"key": b"7"}) == "row-0000003"
    assert reason(Layout(id="key"), key=b"7") == "not_text"
    with pytest.raises(DataError, match=r"row 2: id '7' in column key stands twice; .*--id ''"):
        reader.problem_id(2, {"key": "7"})


def test_cells():
    row = {"a": {"b": {"c": 1}}, "a.b": "dotted", "n": None}

    assert [cell(row, name) for name in ("a.b", "a.b.c", "n", "n.x", "gone")] == ["dotted", 1, None, None, None]
    assert [text(value) for value in (None, 3.0, 2.5, " x ", 7, True, math.nan)] == [
        "",
        "3",
        "2.5",
        "x",
        "7",
        "True",
        "",
    ]
    assert [as_list(value) for value in ("[1]", "(1, 2)", "x", b"[1]", [1], None)] == [[1], None, None, None, [1], None]
