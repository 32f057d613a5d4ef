"""Each preset on a file in exactly its data set's columns; what is imported is scored as it should be.

The six benchmarks go through `df import-problems` and `df evaluate`, answered by an engine that recites.
"""

import json
from itertools import cycle, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Image, List, Value

from pictures import png, sizes
from stages.artifacts.columns import SCORES
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.engines.models import Models
from stages.engines.protocol import Completion
from stages.evaluate import Evaluate
from stages.importing.cells import Unfit
from stages.importing.images import ImageReader
from stages.importing.presets import PRESETS
from stages.importing.rows import ASK_FOR_LETTER, RowReader
from stages.importing.source import open_source
from stages.recipe import load_recipe
from stages.reward.answers import score_answer

TEXT, INTEGER, FLOAT = Value("string"), Value("int64"), Value("float64")


def imported(name, file):
    """Ids and problems, or the reason in their place."""
    layout = PRESETS[name]
    source = open_source(str(file), None, None)
    reader = RowReader(layout, ImageReader(source.folder))
    found = {}
    for number, row in enumerate(source.rows()):
        problem_id = reader.problem_id(number, row)
        try:
            found[problem_id] = reader.problem(row)
        except Unfit as reason:
            found[problem_id] = str(reason)
    return found


def check_scores(problem, right, *wrong):
    assert score_answer(rf"I think so: \boxed{{{right}}}", problem["answer"]) == 1.0
    assert [score_answer(rf"\boxed{{{answer}}}", problem["answer"]) for answer in wrong] == [0.0] * len(wrong)


class Reciting:
    """An engine that answers each problem, found by its question, with the texts given for it, again and again."""

    embedded = False

    def __init__(self, codec, texts):
        self.codec = codec
        self._texts = texts

    def stream(self, batches):
        return ([self._answer(request) for request in batch.requests] for batch in batches)

    def _answer(self, request):
        (texts,) = [texts for question, texts in self._texts.items() if f"{question}<" in request.prompt.text]
        ids = [self.codec.tokenizer.encode(text + self.codec.tokenizer.eos_token) for text in texts]
        return [Completion(each, [0.0] * len(each), "stop") for each in islice(cycle(ids), request.n)]


@pytest.fixture
def scored(typed, base_dir, tmp_path):
    """A function: the scores that `df evaluate` gives these texts on the problems of `df import-problems`."""

    def run(preset, file, texts):
        code, _, told = typed("import-problems", file, "--preset", preset, "--out", tmp_path / "problems")
        assert code == 0, told
        problems = ProblemSet(tmp_path / "problems")
        assert set(problems.ids) == set(texts)
        by_question = {problem.question: list(texts[problem.problem_id]) for problem in problems.many(problems.ids)}

        class Answers(Models):
            def engine(self, path, recipe, **_):
                return Reciting(self.codec(path, recipe), by_question)

        draws = max(map(len, texts.values()))
        recipe = load_recipe("digits", [f"evaluate.draws={draws}", "evaluate.image_removed=false", "reward.workers=1"])
        execute(Evaluate(recipe, tmp_path / "problems", base_dir, models=Answers()), tmp_path / "scores")
        found = {problem_id: {} for problem_id in texts}
        for row in iterate_rows(tmp_path / "scores", SCORES):
            found[row["problem_id"]][row["text"]] = row["reward"]
        return found

    return run


GEOMETRY3K = {
    "images": List(Image()),
    "problem": TEXT,
    "answer": TEXT,
    "id": INTEGER,
    "choices": List(TEXT),
    "ground_truth": TEXT,
}


@pytest.mark.parametrize("columns", [list(GEOMETRY3K), ["images", "problem", "answer"]])
def test_geometry3k_in_its_present_and_its_older_columns(columns, parquet):
    row = {
        "images": [png(5, 4)],
        "problem": "<image>Find $x$.",
        "answer": "3",
        "id": 2401,
        "choices": ["1", "2", "3", "4"],
        "ground_truth": "C",
    }
    file = parquet([{name: row[name] for name in columns}], {name: GEOMETRY3K[name] for name in columns})
    problem = imported("geometry3k", file)["row-0000000"]

    assert (problem["question"], problem["answer"], problem["kind"]) == ("Find $x$.", "3", None)
    assert sizes(problem) == [(5, 4)]
    check_scores(problem, "3", "4", "C")


def test_mmpr_tiny_reads_image_paths_beside_the_file(tmp_path):
    folder = tmp_path / "MMPR-Tiny" / "images" / "set"
    folder.mkdir(parents=True)
    for name, width in (("1.png", 7), ("2.png", 8)):
        (folder / name).write_bytes(png(width)["bytes"])
    rows = [
        {
            "data_source": "mmpr",
            "prompt": [{"content": "<image>\nHow many?", "role": "user"}],
            "images": [{"path": "MMPR-Tiny/images/set/1.png"}],
            "ability": "math",
            "reward_model": {"ground_truth": "18", "style": "rule"},
            "extra_info": {"answer": "18", "index": 0, "question": "<image>\nHow many?", "split": "train"},
        },
        {
            "data_source": "mmpr",
            "prompt": [{"content": "<image>\n<image>\nWhich?", "role": "user"}],
            "images": [{"path": f"MMPR-Tiny/images/set/{number}.png"} for number in (1, 2)],
            "ability": "math",
            "reward_model": {"ground_truth": "B", "style": "rule"},
            "extra_info": {"answer": "B", "index": 1, "question": "<image>\n<image>\nWhich?\nA. x\nB. y", "split": ""},
        },
        {
            "data_source": "mmpr",
            "prompt": [],
            "images": [{"path": "../secret.png"}],
            "ability": "math",
            "reward_model": {"ground_truth": "1", "style": "rule"},
            "extra_info": {"answer": "1", "index": 2, "question": "<image>\nHow many?", "split": "train"},
        },
    ]
    file = tmp_path / "mmpr_tiny.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    first, second, third = imported("mmpr-tiny", file).values()

    assert (first["question"], first["answer"], sizes(first)) == ("How many?", "18", [(7, 2)])
    assert (second["question"], second["answer"]) == ("Which?\nA. x\nB. y", "B")
    assert sizes(second) == [(7, 2), (8, 2)]
    assert third == "image_outside_folder"


def test_mathvista(parquet, scored):
    features = {
        "pid": TEXT,
        "question": TEXT,
        "image": TEXT,
        "decoded_image": Image(),
        "choices": List(TEXT),
        "unit": TEXT,
        "precision": FLOAT,
        "answer": TEXT,
        "question_type": TEXT,
        "answer_type": TEXT,
        "metadata": {
            "category": TEXT,
            "context": TEXT,
            "grade": TEXT,
            "img_height": INTEGER,
            "img_width": INTEGER,
            "language": TEXT,
            "skills": List(TEXT),
            "source": TEXT,
            "split": TEXT,
            "task": TEXT,
        },
        "query": TEXT,
    }
    common = {
        "image": "images/1.jpg",
        "decoded_image": png(9, 6),
        "choices": None,
        "unit": None,
        "precision": None,
        "question_type": "free_form",
        "answer_type": "integer",
        "metadata": {"task": "figure question answering", "skills": ["arithmetic reasoning"]},
        "query": "Hint: …",
    }
    rows = [
        common | {"pid": "1", "question": "When?", "answer": "1.2", "unit": "cm", "precision": 1.0},
        common | {"pid": "2", "question": "Is it?", "answer": "No", "choices": ["Yes", "No"]},
        common | {"pid": "3", "question": "Is it?", "answer": "", "choices": ["Yes", "No"]},
        common | {"pid": "4", "question": "Between which years?", "answer": "[2008, 2014]", "answer_type": "list"},
    ]
    file = parquet(rows, features)
    free, choice, withheld, years = imported("mathvista", file).values()

    assert free["question"] == "When?\nUnit: cm.\nDecimal places: 1."
    assert (free["answer"], free["kind"], sizes(free)) == ("1.2", "figure question answering", [(9, 6)])
    assert choice["question"] == f"Is it?\nA. Yes\nB. No\n{ASK_FOR_LETTER}"
    assert withheld == "answer_missing"
    assert (years["question"], years["answer"]) == ("Between which years?", "[2008, 2014]")
    texts = {
        "1": {
            r"It is \boxed{1.2}": 1.0,
            r"Half of 2.4 cm: \boxed{1.2\text{ cm}}": 1.0,
            "The answer is 1.20 cm.": 1.0,
            r"\boxed{1.25}": 0.0,
            "The answer is 12.": 0.0,
            "It is 1.2 or 1.3.": 0.0,
        },
        "2": {
            r"\boxed{B}": 1.0,
            "The answer is (B) No.": 1.0,
            "The answer is No.": 1.0,
            "The answer is A.": 0.0,
            "The answer is (A) No.": 0.0,
            "The answer is Yes.": 0.0,
        },
        "4": {r"\boxed{[2008, 2014]}": 1.0, "The answer is [2008,2014].": 1.0, r"\boxed{[2008, 2015]}": 0.0},
    }
    assert scored("mathvista", file, texts) == texts


def test_mmstar_keeps_the_choices_that_stand_in_its_question(parquet, scored):
    features = {
        "index": INTEGER,
        "question": TEXT,
        "image": Image(),
        "answer": TEXT,
        "category": TEXT,
        "l2_category": TEXT,
        "meta_info": {"source": TEXT, "split": TEXT, "image_path": TEXT},
    }
    question = "Which option describes it?\nOptions: A: A dog, B: A cat, C: Two cats, D: None"
    row = {
        "index": 7,
        "question": question,
        "image": png(),
        "answer": "C",
        "category": "coarse perception",
        "l2_category": "image scene and topic",
        "meta_info": {"source": "MMBench", "split": "val", "image_path": "images/0.jpg"},
    }
    file = parquet([row], features)
    problem = imported("mmstar", file)["7"]

    assert problem["question"] == f"{question}\n{ASK_FOR_LETTER}"
    assert problem["kind"] == "coarse perception"
    texts = {
        r"\boxed{C}": 1.0,
        "Two animals, so the answer is C.": 1.0,
        r"\boxed{\text{(C)}}": 1.0,
        r"\boxed{D}": 0.0,
        "The answer is C or D.": 0.0,
        "I see two cats.": 0.0,
    }
    assert scored("mmstar", file, {"7": texts}) == {"7": texts}


def test_mmmu_several_images_and_choices_that_are_images(parquet, scored):
    numbered = [f"image_{number}" for number in range(1, 8)]
    features = {
        "id": TEXT,
        "question": TEXT,
        "options": TEXT,
        "explanation": TEXT,
        **{name: Image() for name in numbered},
        "img_type": TEXT,
        "answer": TEXT,
        "topic_difficulty": TEXT,
        "question_type": TEXT,
        "subfield": TEXT,
    }
    empty = dict.fromkeys(features)
    rows = [
        {
            "id": "validation_Art_1",
            "question": "<image 1> Which of these follows?",
            "options": "['<image 2>', \"a 'quoted' one\"]",
            "image_1": png(4, 4),
            "image_2": png(6, 6),
            "answer": "A",
            "subfield": "Drawing",
        },
        {
            "id": "validation_Math_2",
            "question": "Find the area in <image 1>.",
            "options": "[]",
            "image_1": png(),
            "answer": "3/4",
            "subfield": "Geometry",
        },
        {"id": "several", "question": "x <image 1>", "options": "[]", "image_1": png(), "answer": "['1/2', '0.5']"},
        {"id": "test_Math_3", "question": "x <image 1>", "options": "['1', '2']", "image_1": png(), "answer": "?"},
        {"id": "lost", "question": "x <image 2>", "options": "['1', '2']", "image_1": png(), "answer": "A"},
        {"id": "beyond", "question": "x", "options": "['1', '2']", "image_1": png(), "answer": "C"},
        {"id": "gap", "question": "x", "options": "['1', '2']", "image_2": png(), "answer": "A"},
    ]
    file = parquet([empty | row for row in rows], features)
    found = imported("mmmu", file)
    art, area = found.pop("validation_Art_1"), found.pop("validation_Math_2")

    assert art["question"] == (f"image 1 Which of these follows?\nA. image 2\nB. a 'quoted' one\n{ASK_FOR_LETTER}")
    assert (art["answer"], art["kind"], sizes(art)) == ("A", "Drawing", [(4, 4), (6, 6)])
    assert (area["question"], area["answer"]) == ("Find the area in image 1.", "3/4")
    texts = {
        "validation_Art_1": {
            "The answer is A.": 1.0,
            r"The same hand, so \boxed{A}": 1.0,
            r"\boxed{\text{image 2}}": 1.0,
            r"\boxed{B}": 0.0,
            "The answer is a 'quoted' one.": 0.0,
        },
        "validation_Math_2": {
            r"\boxed{\frac{3}{4}}": 1.0,
            "The answer is 0.75.": 1.0,
            r"\boxed{0.7}": 0.0,
            r"\boxed{A}": 0.0,
        },
    }
    assert scored("mmmu", file, texts) == texts
    assert found == {
        "several": "answer_several",
        "test_Math_3": "answer_missing",
        "lost": "placeholder_without_image",
        "beyond": "answer_not_a_choice",
        "gap": "image_missing",
    }


def test_mathverse_asks_what_stands_in_the_picture_only(parquet, scored):
    features = {
        "sample_index": TEXT,
        "problem_index": TEXT,
        "problem_version": TEXT,
        "question": TEXT,
        "image": Image(),
        "answer": TEXT,
        "question_type": TEXT,
        "metadata": {"split": TEXT, "source": TEXT, "subject": TEXT, "subfield": TEXT},
        "query_wo": TEXT,
        "query_cot": TEXT,
    }
    common = {
        "problem_index": "1",
        "image": png(),
        "metadata": {"split": "testmini", "source": "GEOS", "subject": "Plane Geometry", "subfield": "Angle"},
        "query_wo": "…",
        "query_cot": "…",
    }
    listed = "Find the angle.\nChoices:\nA:20°\nB:30°"
    rows = [
        {"sample_index": "1", "problem_version": "Text Lite", "question": listed, "answer": "B"},
        {"sample_index": "2", "problem_version": "Vision Only", "question": "", "answer": "B"},
        {"sample_index": "3", "problem_version": "Text Lite", "question": "Find the angle.", "answer": "30"},
    ]
    file = parquet([common | {"question_type": "multi-choice"} | row for row in rows], features)
    lite, vision, free = imported("mathverse", file).values()

    assert (lite["question"], lite["kind"]) == (f"{listed}\n{ASK_FOR_LETTER}", "Text Lite")
    assert vision["question"] == f"Answer the question in the image.\n{ASK_FOR_LETTER}"
    assert (free["question"], free["answer"]) == ("Find the angle.", "30")
    of_choice = {r"\boxed{B}": 1.0, "The answer is B.": 1.0, "The answer is B:30°.": 1.0, r"\boxed{A}": 0.0}
    texts = {
        "1": of_choice,
        "2": of_choice,
        "3": {r"\boxed{30^\circ}": 1.0, "The answer is 30°.": 1.0, r"\boxed{20}": 0.0, r"\boxed{B}": 0.0},
    }
    assert scored("mathverse", file, texts) == texts


def test_mathvision(parquet, scored):
    features = {
        "id": TEXT,
        "question": TEXT,
        "options": List(TEXT),
        "image": TEXT,
        "decoded_image": Image(),
        "answer": TEXT,
        "solution": TEXT,
        "level": INTEGER,
        "subject": TEXT,
    }
    common = {"image": "images/1.jpg", "decoded_image": png(8, 3), "solution": None, "level": 2, "subject": "logic"}
    rows = [
        {"id": "1", "question": "Which number goes there? <image1>", "options": [], "answer": "60"},
        {"id": "2", "question": "Which bike?\n<image1>", "options": list("ABCDE"), "answer": "A"},
        {"id": "3", "question": "As in <image1>", "options": ["$\\frac12$", "2"], "answer": "B"},
    ]
    file = parquet([common | row for row in rows], features)
    free, letters, listed = imported("mathvision", file).values()

    assert (free["question"], free["answer"], free["kind"]) == ("Which number goes there?", "60", "logic")
    assert letters["question"] == f"Which bike?\nChoices: A, B, C, D, E\n{ASK_FOR_LETTER}"
    assert listed["question"] == f"As in image 1\nA. $\\frac12$\nB. 2\n{ASK_FOR_LETTER}"
    assert sizes(free) == [(8, 3)]
    texts = {
        "1": {r"\boxed{60}": 1.0, "The answer is 60.": 1.0, r"\boxed{6}": 0.0, r"\boxed{A}": 0.0},
        "2": {r"\boxed{A}": 1.0, "The answer is (A).": 1.0, r"\boxed{E}": 0.0, "The answer is the blue one.": 0.0},
        "3": {
            r"\boxed{B}": 1.0,
            r"\boxed{2}": 1.0,
            r"\boxed{A}": 0.0,
            r"\boxed{\frac12}": 0.0,
            r"\boxed{0.5}": 0.0,
        },
    }
    assert scored("mathvision", file, texts) == texts


def test_ai2d_names_the_choice_by_its_number(parquet, scored):
    features = {"question": TEXT, "options": List(TEXT), "answer": TEXT, "image": Image()}
    rows = [
        {"question": "Which is the dairy item", "options": ["c", "D", "b", "a"], "answer": "1", "image": png()},
        {"question": "Which?", "options": ["c", "D"], "answer": "2", "image": png()},
    ]
    file = parquet(rows, features)
    first, second = imported("ai2d", file).values()

    assert first["question"] == f"Which is the dairy item\nA. c\nB. D\nC. b\nD. a\n{ASK_FOR_LETTER}"
    texts = {
        r"\boxed{B}": 1.0,
        "The answer is B. D": 1.0,
        r"\boxed{D}": 0.0,
        r"\boxed{1}": 0.0,
        "The answer is a.": 0.0,
    }
    assert scored("ai2d", file, {"row-0000000": texts}) == {"row-0000000": texts}
    assert second == "answer_not_a_choice"


def jsonl(folder, rows, name="data.jsonl"):
    (folder / "a.png").write_bytes(png(5, 4)["bytes"])
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def said(question, response=None, sides=("user", "assistant"), keys=("role", "content")):
    """A conversation; without a response what is asked alone."""
    texts = [question, *([] if response is None else [response])]
    return [dict(zip(keys, pair, strict=True)) for pair in zip(sides, texts, strict=False)]


def test_ms_swift(tmp_path):
    system = [{"role": "system", "content": "You think first."}]
    rows = [
        {"messages": system + said("<image>How many?"), "images": ["a.png"], "solution": "<answer> 3 </answer>"},
        {"messages": said("<image>How many?", "I count. The answer is 4."), "images": ["a.png"], "solution": None},
        {"messages": said("2 + 2?", r"That is \boxed{4}"), "images": [], "solution": None},
        {"messages": said("<image>Which?", "B"), "images": ["gone.png"], "solution": None},
        {"messages": said("2?", "2") + said("3?", "3"), "images": [], "solution": None},
        {"messages": [{"role": "tool", "content": "x"}], "images": [], "solution": "1"},
    ]
    found = list(imported("ms-swift", jsonl(tmp_path, rows)).values())

    assert [(p["question"], p["answer"], sizes(p)) for p in found[:3]] == [
        ("How many?", "3", [(5, 4)]),
        ("How many?", "4", [(5, 4)]),
        ("2 + 2?", "4", []),
    ]
    assert found[3:] == ["image_not_found", "several_turns", "messages_unreadable"]


@pytest.mark.parametrize("columns", [["messages"], ["messages", "images"]])
def test_ms_swift_without_the_columns_that_it_may_lack(columns, tmp_path):
    row = {"messages": said("2 + 2?", "4"), "images": []}
    (problem,) = imported("ms-swift", jsonl(tmp_path, [{name: row[name] for name in columns}])).values()
    assert (problem["question"], problem["answer"], problem["images"]) == ("2 + 2?", "4", [])


def test_a_message_in_parts(tmp_path):
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]
    rows = [{"messages": [{"role": "user", "content": parts}], "images": ["a.png"], "solution": "3"}]
    (problem,) = imported("ms-swift", jsonl(tmp_path, rows)).values()
    assert (problem["question"], sizes(problem)) == ("How many?", [(5, 4)])


def test_verl(parquet):
    features = {
        "data_source": TEXT,
        "prompt": [{"role": TEXT, "content": TEXT}],
        "images": List(Image()),
        "reward_model": {"style": TEXT, "ground_truth": TEXT},
        "extra_info": {"split": TEXT, "index": INTEGER},
    }
    row = {
        "data_source": "hiyouga/geometry3k",
        "prompt": said("<image>Find x."),
        "images": [png(5, 4)],
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "train", "index": 0},
    }
    (problem,) = imported("verl", parquet([row], features)).values()

    assert (problem["question"], problem["answer"], problem["kind"]) == ("Find x.", "3", "hiyouga/geometry3k")
    assert sizes(problem) == [(5, 4)]

    del features["images"], row["images"], features["data_source"], row["data_source"]
    row["prompt"] = said("2 + 2?")
    (problem,) = imported("verl", parquet([row], features, "texts.parquet")).values()
    assert (problem["question"], problem["images"], problem["kind"]) == ("2 + 2?", [], None)


def test_verl_with_images_by_their_paths(tmp_path):
    paths = [{"image": "a.png"}, {"image": f"file://{tmp_path}/a.png"}]
    row = {"prompt": said("<image><image>Find x."), "images": paths, "reward_model": {"ground_truth": "3"}}
    (problem,) = imported("verl", jsonl(tmp_path, [row])).values()
    assert (problem["question"], sizes(problem)) == ("Find x.", [(5, 4)] * 2)


@pytest.mark.parametrize("question", ["problem", "prompt"])
def test_easyr1(question, parquet):
    row = {"images": [png(5, 4)], question: "<image>Find x.", "answer": "3"}
    file = parquet([row], {"images": List(Image()), question: TEXT, "answer": TEXT})
    (problem,) = imported("easyr1", file).values()

    assert (problem["question"], problem["answer"], sizes(problem)) == ("Find x.", "3", [(5, 4)])


def test_llava(tmp_path):
    def told(*texts):
        return said(*texts, sides=("human", "gpt"), keys=("from", "value"))

    rows = [
        {"id": "1", "image": "a.png", "conversations": told("<image>\nHow many?", "There are three. The answer is 3.")},
        {"id": "1", "image": "a.png", "conversations": told("Is it red?\n<image>", "Yes")},
        {"id": "2", "image": None, "conversations": told("2 + 2?", "4")},
    ]
    (tmp_path / "a.png").write_bytes(png(5, 4)["bytes"])
    (tmp_path / "data.json").write_text(json.dumps(rows))
    found = imported("llava", tmp_path / "data.json").values()

    assert [(p["question"], p["answer"], sizes(p)) for p in found] == [
        ("How many?", "3", [(5, 4)]),
        ("Is it red?", "Yes", [(5, 4)]),
        ("2 + 2?", "4", []),
    ]


def test_every_preset_is_tried_here():
    named = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    assert [preset for preset in PRESETS if not any(name.startswith(preset) for name in named)] == []
