"""From the base policy's errors over an annotated sheet to a repair set: each check, and what `df sft-repair` makes of
the result.
"""

import json
import re
from collections import Counter

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.artifacts.columns import DRAFTS, ERRORS, REPAIR_SET
from stages.artifacts.label_studio import CONFIG, PLAIN
from stages.artifacts.ledger import CostLedger
from stages.artifacts.manifests import read_manifest
from stages.artifacts.problems import Problem, encode_image
from stages.artifacts.stage import execute
from stages.artifacts.step import Tally
from stages.artifacts.store import iterate_rows, write_rows
from stages.engines.protocol import Completion, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import DataError
from stages.recipe import load_recipe
from stages.repair.answering import Answer, Answerer
from stages.repair.repairs import Draft
from stages.repair.wrong_answers import WrongAnswer, wrong_answers
from stages.repair_set import REMEDIES, ReadRepairSet
from stages.repair_sheet import RepairSheet, by_problem, spread_over_problems
from stages.reward.rewards import Reward
from stages.s1_sft_repair import SftRepair

SMALL = ["repair_set.samples_per_problem=2", "sft.epochs=1", "sft.batch_size=8", "rollout.max_new_tokens=64"]
RECIPE = load_recipe("digits", SMALL)
COUNT = 20
TASKS = "tasks-00.json"
HELD_OUT = 2
PICTURES = [encode_image(Image.new("L", (2, 2), shade)) for shade in range(60)]


def rows_of(path, spec):
    return list(iterate_rows(path / f"{spec.name}.parquet", spec))


def stated(text):
    return re.findall(r"The answer is (\d+)\.", text)[-1]


def repaired(error, answer):
    """What an annotator in a hurry makes of it: the right number at the end."""
    return re.sub(r"The answer is \d+\.", f"The answer is {answer}.", error)


def annotation(text, **changes):
    """As Label Studio exports one: labelstud.io/guide/task_format."""
    result = {"id": "x1", "from_name": "repair", "to_name": "error", "type": "textarea", "origin": "manual"}
    return {
        "id": 1001,
        "completed_by": 10,
        "result": [] if text is None else [result | {"value": {"text": [text]}}],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:08.728378Z",
        "lead_time": 4.288,
    } | changes


@pytest.fixture(scope="module")
def digits_sheet(tmp_path_factory, digits):
    """Errors of the base policy on forty problems."""
    folder = tmp_path_factory.mktemp("digits")
    problems = folder / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 40), problems)
    stage = RepairSheet(RECIPE, problems, digits / "base", COUNT)
    assert execute(stage, folder / "sheet").ran
    assert not execute(stage, folder / "sheet").ran
    return folder / "sheet"


def test_the_sheet_has_different_problems_in_drawn_order_each_with_a_finished_wrong_answer(digits_sheet, digits):
    errors = rows_of(digits_sheet, ERRORS)
    problems = {row["problem_id"]: row for row in pq.read_table(digits / "problems_train.parquet").to_pylist()}
    places = [list(problems).index(row["problem_id"]) for row in errors]
    assert len(set(places)) == COUNT
    assert places != sorted(places)
    for row in errors:
        assert stated(row["error"]) != row["answer"]
        assert row["error_id"] == row["problem_id"]
        assert problems[row["problem_id"]] == {name: row[name] for name in problems[row["problem_id"]]}
    tasks = json.loads((digits_sheet / TASKS).read_text(encoding="utf-8"))
    assert [task["data"]["error"] for task in tasks] == [row["error"] for row in errors]


def test_the_manifest_accounts_for_every_answer(digits_sheet):
    manifest = read_manifest(digits_sheet)
    assert manifest["counts"]["drafts"] == 2 * manifest["rows_in"]
    assert manifest["rows_out"] == COUNT
    assert manifest["dropped"].keys() <= {"prompt_too_long", "unscored", "length", "empty", "repeated", "surplus"}
    assert manifest["counts"]["problems_with_error"] >= COUNT
    drafts = {file.name for file in digits_sheet.glob("drafts-*.parquet")}
    assert {TASKS, PLAIN, CONFIG, "errors.parquet", *drafts} == manifest["files"].keys()


def test_the_drafts_hold_the_token_ids_of_every_error_of_the_sheet(digits_sheet, base_vlm):
    drafts = {(row["problem_id"], row["text"]): row for row in iterate_rows(digits_sheet, DRAFTS)}
    for error in rows_of(digits_sheet, ERRORS):
        draft = drafts[error["problem_id"], error["error"]]
        assert base_vlm.decode(draft["ids"]) == error["error"]
        assert draft["right_response"] is None


def test_an_export_of_label_studio_becomes_a_repair_set_that_sft_repair_trains_on(digits_sheet, digits, tmp_path):
    tasks = json.loads((digits_sheet / TASKS).read_text(encoding="utf-8"))
    for number, task in enumerate(tasks):
        text = repaired(task["data"]["error"], task["data"]["answer"])
        task |= {"id": number + 1, "annotations": [annotation(text)], "project": 83}
    export = tmp_path / "project-1.json"
    export.write_text(json.dumps(tasks), encoding="utf-8")
    stage = ReadRepairSet(RECIPE, digits_sheet, export, digits / "base")
    manifest = execute(stage, tmp_path / "set").manifest
    assert (manifest["rows_in"], manifest["rows_out"]) == (COUNT, COUNT)
    assert sum(manifest["dropped"].values()) == 0
    by_id = {row["error_id"]: row for row in rows_of(digits_sheet, ERRORS)}
    pairs = rows_of(tmp_path / "set", REPAIR_SET)
    for pair in pairs:
        error = by_id[pair["problem_id"]]
        assert {name: pair[name] for name in ("images", "question", "answer", "kind", "error")} == {
            name: error[name] for name in ("images", "question", "answer", "kind", "error")
        }
        assert pair["repair"] == repaired(error["error"], error["answer"])
    trained = execute(SftRepair(RECIPE, tmp_path / "set", digits / "base"), tmp_path / "sft")
    assert trained.manifest["rows_out"] == COUNT - HELD_OUT
    assert trained.manifest["dropped"] == {"held_out": HELD_OUT}


def test_errors_that_were_cut_off_are_counted_and_never_shown(digits, tmp_path):
    recipe = load_recipe("digits", ["rollout.max_new_tokens=4", "repair_set.samples_per_problem=1"])
    problems = tmp_path / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 3), problems)
    with pytest.raises(DataError, match=r"no error to repair \(.*length 3.*\); raise"):
        execute(RepairSheet(recipe, problems, digits / "base", 3), tmp_path / "sheet")


def test_fewer_errors_than_were_asked_for_are_told(digits, tmp_path, caplog):
    problems = tmp_path / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 4), problems)
    recipe = load_recipe("digits", ["repair_set.samples_per_problem=8", "repair_set.errors_per_problem=1"])
    found = execute(RepairSheet(recipe, problems, digits / "base", 80), tmp_path / "sheet").manifest["rows_out"]

    assert 1 <= found <= 4
    assert f"{problems}: only {found} of the 80 errors that --count asks for (left out: " in caplog.text
    assert "; give more problems, or raise repair_set.samples_per_problem" in caplog.text


class ByTurns(Reward):
    """A reward that goes round a list."""

    def __init__(self, *rewards):
        self.rewards = rewards

    def score_many(self, responses, _problems):
        return [self.rewards[i % len(self.rewards)] for i in range(len(responses))]


def test_an_answer_that_cannot_be_scored_is_counted_and_no_error(base_vlm, problems, recipe):
    policy = Answerer(TransformersEngine(base_vlm), recipe.prompt, ByTurns(None, 0.0, 1.0, 0.4, 0.6), CostLedger())
    tally, half = Tally(), load_recipe("digits", ["reward.threshold=0.5"])
    found = wrong_answers(policy, problems[:2], 5, Sampling(2, 1.0, 0), half, tally)
    assert [(error.problem.problem_id, error.sample) for error in found] == [
        (problem.problem_id, sample) for problem in problems[:2] for sample in (1, 3)
    ]
    assert tally.counts["drafts"] == tally.counts["responses"] == tally.counts["responses_cut"] == 10
    assert tally.dropped["unscored"] == 2


def wrong(name, *texts, finish="stop"):
    problem = Problem(name, "Sum?", [], "7", None, None, {})
    answers = [Answer(Completion([1], [-1.0], finish), text, 0.0) for text in texts]
    return [WrongAnswer(problem, sample, answer, []) for sample, answer in enumerate(answers)]


def drafts(name, *texts):
    problem = Problem(name, "Sum?", [], "7", None, None, {})
    return [Draft(problem, sample, [1], text) for sample, text in enumerate(texts)]


def test_second_errors_come_when_every_problem_has_given_its_first():
    found = [*drafts("a", "a1", "a2", "a3"), *drafts("b", "b1"), *drafts("c", "c1", "c2")]
    names = [(row["error_id"], row["problem_id"], row["error"]) for row in spread_over_problems(found, 5)]
    assert names == [("a", "a", "a1"), ("b", "b", "b1"), ("c", "c", "c1"), ("a#2", "a", "a2"), ("c#2", "c", "c2")]
    assert len(spread_over_problems(found, 2)) == 2
    assert len(spread_over_problems(found, 99)) == 6


def test_an_id_that_two_errors_would_have_is_refused():
    with pytest.raises(DataError, match="problem_id a#2 is also what an error of a"):
        spread_over_problems([*drafts("a", "a1", "a2"), *drafts("a#2", "b1")], 9)


@pytest.mark.parametrize(("limit", "kept", "surplus"), [(1, 1, 2), (2, 2, 1), (9, 3, 0)])
def test_what_is_left_out_of_a_problem_is_counted_by_reason(limit, kept, surplus):
    tally = Tally()
    found = [*wrong("a", "x", "x", "y", " \n", "z"), *wrong("a", "cut", finish="length"), *wrong("b", " ")]
    (errors,) = by_problem(found, limit, tally)
    assert [error.answer.text for error in errors] == ["x", "y", "z"][:kept]
    assert tally.dropped == Counter(length=1, empty=2, repeated=1, surplus=surplus)


def test_errors_per_problem_reaches_the_sheet(digits, tmp_path):
    problems = tmp_path / "problems.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 4), problems)
    settings = ["rollout.temperature=2.0", "rollout.max_new_tokens=64", "repair_set.samples_per_problem=6"]
    recipe = load_recipe("digits", [*settings, "repair_set.errors_per_problem=2"])
    execute(RepairSheet(recipe, problems, digits / "base", 8), tmp_path / "sheet")
    errors = rows_of(tmp_path / "sheet", ERRORS)
    per_problem = Counter(row["problem_id"] for row in errors)
    assert max(per_problem.values()) == 2
    assert {row["error_id"] for row in errors} == {
        f"{name}#2" if second else name for name, n in per_problem.items() for second in range(n)
    }


def error_row(number, problem=None, images=None):
    """One of a sheet made by hand; its right repair ends in 18."""
    name = f"p{number}"
    return {
        "error_id": name,
        "problem_id": problem or name,
        "question": "What is the sum of the digits?",
        "images": [PICTURES[number]] if images is None else images,
        "answer": "18",
        "kind": "sum",
        "error": f"The digits are {number}, 9. 9 + 9 = 17. The answer is 17.",
    }


def filled_in(row, **changes):
    names = ("error_id", "problem_id", "question", "answer", "error")
    return {name: row[name] for name in names} | {"repair": row["error"].replace("17", "18")} | changes


@pytest.fixture
def reading(tmp_path, base_dir):
    """A function: the stage that reads these rows, annotated so, and the folder for its output."""

    def make(errors, annotated, *settings, seed=0, name="set", **options):
        (tmp_path / "sheet").mkdir(exist_ok=True)
        write_rows(tmp_path / "sheet" / "errors.parquet", ERRORS, errors)
        file = tmp_path / "annotated.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in annotated), encoding="utf-8")
        recipe = load_recipe("digits", [f"seed={seed}", *settings])
        return ReadRepairSet(recipe, tmp_path / "sheet", file, base_dir, **options), tmp_path / name

    return make


ERROR_ROWS = [error_row(number) for number in range(20)]
BAD = {
    "unknown_error": {"error_id": "p99"},
    "changed_error": {"error": "The answer is 16."},
    "annotated_twice": {"error_id": "p0", "error": ERROR_ROWS[0]["error"]},
    "not_one_text": {"repair": ["The answer is 18.", "The answer is 18."]},
    "empty": {"repair": " \n"},
    "unchanged": {"repair": f"\n{ERROR_ROWS[6]['error']} "},
    "wrong": {"repair": ERROR_ROWS[7]["error"].replace("17", "19")},
    "rewritten": {"repair": "I see something else altogether in this picture, and so the answer is 18."},
    "not_unicode": {"repair": "The answer is \ud800 18."},
    "vision_token": {"repair": ERROR_ROWS[10]["error"].replace("17", "18") + "<|vision_start|>"},
    "repair_too_long": {"repair": "9 " * 1_100 + "The answer is 18."},
}
"""What is wrong with the annotation of p1 (else with that of the error of the same number), by reason."""


def with_bad_rows():
    annotated = [filled_in(row) for row in ERROR_ROWS]
    for number, changes in enumerate(BAD.values(), 1):
        annotated[number] |= changes
    return annotated


def test_every_bad_row_is_named_at_once_with_its_remedy_and_nothing_is_written(reading):
    stage, out = reading(ERROR_ROWS, with_bad_rows())
    with pytest.raises(DataError) as told:
        execute(stage, out)
    first, *lines = str(told.value).splitlines()
    assert first.endswith(
        f"{len(BAD)} bad rows, nothing was written; mend them, or leave them out with --on-bad-row drop"
    )
    ids = ["p99", "p2", "p0", *(f"p{number}" for number in range(4, 12))]
    for number, (reason, name) in enumerate(zip(BAD, ids, strict=True), 1):
        (line,) = [line for line in lines if f" {reason}: " in line]
        assert line.startswith(f"  1 {reason}: {REMEDIES[reason]}: row {number} ({name})")
    assert not out.exists()


def test_bad_rows_that_are_dropped_are_counted_by_reason(reading):
    stage, out = reading(ERROR_ROWS, with_bad_rows(), on_bad_row="drop")
    manifest = execute(stage, out).manifest
    kept = {row["problem_id"] for row in rows_of(out, REPAIR_SET)}
    assert kept == {f"p{number}" for number in (0, *range(12, 20))}
    # p1 and p3 have no annotation of their own left
    assert {k: n for k, n in manifest["dropped"].items() if n} == dict.fromkeys(BAD, 1) | {"not_annotated": 2}
    assert (manifest["rows_in"], manifest["rows_out"]) == (20, 9)


def test_what_was_skipped_or_not_annotated_is_counted_and_no_fault(reading):
    rows = ERROR_ROWS[:10]
    tasks = [{"id": n, "data": filled_in(row), "annotations": [annotation(filled_in(row)["repair"])]}
             for n, row in enumerate(rows[:8])]  # fmt: skip
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"] = []
    tasks[3]["annotations"].append(annotation(rows[3]["error"], updated_at="2026-01-01T00:00:00Z"))
    stage, out = reading(rows, tasks)
    manifest = execute(stage, out).manifest
    assert manifest["dropped"] == {"skipped": 1, "not_annotated": 3}
    assert manifest["counts"] == {"superseded_annotations": 1}
    assert manifest["rows_out"] == 6


def test_a_sheet_without_a_usable_repair_is_refused(reading):
    stage, out = reading(ERROR_ROWS, [filled_in(row, repair=None) for row in ERROR_ROWS])
    with pytest.raises(DataError, match="no repair that can be used, of 20 errors \\(20 not_annotated\\)"):
        execute(stage, out)


def test_what_cannot_be_scored_is_a_fault_of_its_own(reading, tmp_path, monkeypatch):
    (tmp_path / "own_reward.py").write_text("def none_for_p3(response, problem):\n"
                                            "    assert problem['kind'] == 'sum'\n"
                                            "    assert problem['images'][0].size == (2, 2)\n"
                                            "    return None if problem['problem_id'] == 'p3' else 1.0\n")  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    annotated = [filled_in(row) for row in ERROR_ROWS]
    stage, out = reading(ERROR_ROWS, annotated, "reward.name=own_reward:none_for_p3", on_bad_row="drop")
    assert execute(stage, out).manifest["dropped"]["unscored"] == 1
    assert "p3" not in {row["problem_id"] for row in rows_of(out, REPAIR_SET)}


def test_the_edit_cost_that_counts_as_a_rewrite_is_the_recipes(reading):
    """Two digits of about thirty tokens are changed."""
    annotated = [filled_in(row) for row in ERROR_ROWS]
    stage, out = reading(ERROR_ROWS, annotated, "repair_set.max_edit_cost=0.02")
    with pytest.raises(DataError, match=r"20 rewritten: .*row 0 \(p0\), 0\.\d\d; row 1"):
        execute(stage, out)
    stage, out = reading(ERROR_ROWS, annotated, "repair_set.max_edit_cost=0.2")
    assert execute(stage, out).ran


def test_white_space_that_an_editor_changed_is_the_errors_again(reading):
    rows = [row | {"error": " " + row["error"].replace(". 9", ".\n9") + "\n"} for row in ERROR_ROWS]
    annotated = [filled_in(row) for row in rows]
    for item in annotated:
        item["repair"] = item["repair"].strip().replace("\n", "\r\n")
    stage, out = reading(rows, annotated)
    execute(stage, out)
    assert all(row["repair"] == row["error"].replace("17", "18") for row in rows_of(out, REPAIR_SET))


def heldout_and_rest(rows, share=0.1):
    cut = len(rows) - round(len(rows) * share)
    return rows[cut:], rows[:cut]


def test_the_held_out_end_shares_no_problem_and_no_image_with_the_rest(reading):
    """Errors 0 and 1 are of one problem; the problems of 2 and 3, and of 3 and 4, have an image in common."""
    rows = [error_row(0, "twice"), error_row(1, "twice"), *ERROR_ROWS[2:]]
    rows[2] |= {"images": [PICTURES[50], PICTURES[51]]}
    rows[3] |= {"images": [PICTURES[51], PICTURES[52]]}
    rows[4] |= {"images": [PICTURES[52]]}
    held_out = Counter()
    for seed in range(8):
        stage, out = reading(rows, [filled_in(row) for row in rows], seed=seed, name=f"set-{seed}")
        execute(stage, out)
        written = [row["problem_id"] for row in rows_of(out, REPAIR_SET)]
        last, rest = heldout_and_rest(written)
        assert len(last) == 2
        assert sorted(written) == sorted(row["error_id"] for row in rows)
        assert len({"p0", "p1"} & set(last)) in (0, 2)
        assert not {"p2", "p3", "p4"} & set(last)
        assert rest != sorted(rest, key=lambda name: int(name[1:]))
        held_out.update(last)
    assert len(held_out) > 4


def test_a_held_out_share_that_cannot_be_had_is_refused_with_the_nearest(reading):
    rows = [error_row(number, images=[PICTURES[number % 4]]) for number in range(20)]
    annotated = [filled_in(row) for row in rows]
    stage, out = reading(rows, annotated)
    with pytest.raises(DataError, match=r"has 2 of the 20 rows; the nearest has 0 .*; change sft\.heldout_share"):
        execute(stage, out)
    assert not out.exists()
    stage, out = reading(rows, annotated, "sft.heldout_share=0.25", name="quarter")
    execute(stage, out)
    last, rest = heldout_and_rest(rows_of(out, REPAIR_SET), 0.25)
    pictures = [{row["images"][0]["bytes"] for row in part} for part in (last, rest)]
    assert len(pictures[0]) == 1
    assert not pictures[0] & pictures[1]
