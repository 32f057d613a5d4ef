"""The page of runs, studies and evaluations: its numbers are the files', it says what is missing, texts stay texts."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hostile_text import HOSTILE, MARKUP, SHOWN, assert_plain
from stages.artifacts.columns import ABLATION, CURVES, ROLLOUTS
from stages.artifacts.plan import Plan
from stages.artifacts.step import Step
from stages.artifacts.store import write_rows
from stages.errors import ArtifactError
from stages.pages import pairs
from stages.pages.chart import ticks
from stages.pages.lines import LONGEST, Point, thinned
from stages.pages.page import MEGABYTE, report_page
from stages.pages.pairs import Candidate, drawn
from stages.study.curves import rows_of
from stages.study.run_folders import run_folder
from written_run import REPAIR, study_run, write_problems, write_run, write_scores, write_step, write_study


class Page(HTMLParser):
    """Tables by the words before them, pairs and problems by their heading, elements, and all text."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.source, self.elements, self.text, self.tables = text, [], "", []
        self.articles, self.problems = {}, {}
        self._row, self._cell, self._article, self._marks, self._open = [], None, None, [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, attributes))
        self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self._row = []
        elif tag in ("th", "td"):
            self._cell = ""
        elif tag == "article":
            self._article = {"data": dict(attributes), "text": "", "marked": [], "title": ""}

    def handle_endtag(self, tag):
        self.elements.append((f"/{tag}", []))
        self._open.pop()
        if tag in ("th", "td"):
            self._row.append(self._cell)
            self._cell = None
        elif tag == "tr":
            self.tables[-1].append(self._row)
        elif tag == "article":
            if self._article["data"]["class"] == "pair":
                self.articles[self._article["title"]] = self._article
            else:
                self.problems[self._article["title"]] = self._article | {"rows": self.tables[-1][1:]}
            self._article = None

    def handle_data(self, data):
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if self._cell is not None:
            self._cell += data
        if self._article is not None:
            self._article["text"] += data
            if "h3" in self._open:
                self._article["title"] += data
            if "mark" in self._open:
                self._article["marked"].append(data)

    def table(self, *head):
        """The rows of the first table that begins so."""
        return next(rows[1:] for rows in self.tables if tuple(rows[0][: len(head)]) == head)

    def line(self, panel, label, tables=None):
        """The numbers of a line: round, device-seconds, value, low, high; of several tables where there are some."""
        place = self.source.index(f"<summary>Numbers: {panel}</summary>")
        number = self.source[:place].count("<table")
        found = [
            [tuple(row[1:]) for row in of if row[0] == label] for of in self.tables[number : number + (tables or 1)]
        ]
        return found if tables else found[0]


def page(*folders, size=5 * MEGABYTE):
    return Page(report_page(folders, size))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("written") / "run")


@pytest.fixture(scope="module")
def shown(run):
    return page(run)


def test_the_result_is_one_sentence_and_one_table(shown):
    """1 of 4 problems right before, 3 after, in each mode; two rounds of 75 device-seconds."""
    assert "After 2 rounds sampled accuracy" in shown.text
    assert "from 0.250 to 0.750 (+0.500 [" in shown.text
    assert "on 4 problems, for 150.0 device-seconds." in shown.text
    rows = shown.table("policy", "sampled accuracy")
    assert [row[0] for row in rows] == ["base policy", "final policy", "gain, final over base"]
    assert [row[1][:6].strip(" [") for row in rows] == ["0.250", "0.750", "+0.500"]
    assert {row[3] for row in rows} == {"4"}


def test_lines_have_the_numbers_of_the_files(shown):
    """Rounds are trained on when 35, then 110 device-seconds are spent; a round's training is 40, in two steps."""
    accuracy = shown.line("Accuracy", "greedy")
    assert [point[:3] for point in accuracy] == [("0", "0.0", "0.250"), ("2", "150.0", "0.750")]
    assert accuracy[0][3:] == ("0.046", "0.699")  # Wilson's interval of 1 of 4
    of_rounds = [("1", "35.0"), ("2", "110.0")]
    for panel, label, value in (
        ("Rollouts", "mean reward", "0.500"),  # of 0 and 1; a third is not scored
        ("Rollouts", "correct rollouts", "0.333"),
        ("p, rollouts that were repaired", "p, rollouts that triggered a repair (eq. 29)", "0.333"),
        ("Feasible share", "errors with a selected repair", "1.000"),
        ("Edit cost", "selected repairs", "0.125"),
        ("Marked tokens", "marked tokens", "0.080"),
    ):
        assert [point[:3] for point in shown.line(panel, label)] == [(*place, value) for place in of_rounds], label
    steps = [("0.5", "55.0", "0.500"), ("1", "75.0", "1.500"), ("1.5", "130.0", "1.000"), ("2", "150.0", "2.000")]
    assert [point[:3] for point in shown.line("Entropy", "errors")] == steps
    assert [point[:3] for point in shown.line("Gradient norm", "all rows")] == steps
    assert [point[:3] for point in shown.line("Sampler mismatch", "all rows")] == steps
    paid = [point[2] for point in shown.line("KL to the reference", "all rows")]
    assert paid == ["0.062", "0.188", "0.125", "0.250"]  # an eighth of the entropies
    assert "KL to the old policy" not in shown.text  # the files have none


def test_costs_and_what_was_dropped_are_the_manifests(shown):
    assert shown.table("stage", "generate", "other", "score", "train", "all") == [
        ["rollout", "20.0", "0.0", "", "", "20.0"],
        ["build-masks", "40.0", "0.0", "10.0", "", "50.0"],
        ["train-policy", "", "0.0", "", "80.0", "80.0"],
        ["evaluate", "200.0", "0.0", "", "", "200.0"],
    ]
    steps = {row[0]: row[1:] for row in shown.table("step", "state")}
    assert steps["round-1/build-masks"][:4] == ["complete", "12", "8", "unscored 4"]
    assert steps["round-2/train-policy"][3] == "all correct 2"
    assert "tokens marked 16" in steps["round-1/build-masks"][4]


def test_what_the_policy_sampled_in_training_has_panels(shown):
    """Whole at first, halved at the next step and at the next round's first, a third at its second."""
    for panel, label, values in (
        ("Reward in training", "mean", ["0.750", "0.375", "0.375", "0.250"]),
        ("Reward in training", "standard deviation", ["0.250", "0.125", "0.125", "0.083"]),
        ("Response length", "rollouts", ["12.000", "6.000", "6.000", "4.000"]),
        ("Cut responses", "rollouts", ["0.125", "0.062", "0.062", "0.042"]),
        ("Groups without contrast", "groups", ["0.500", "0.250", "0.250", "0.167"]),
    ):
        points = shown.line(panel, label)
        assert [point[2] for point in points] == values, (panel, label)
        assert [point[0] for point in points] == ["0.5", "1", "1.5", "2"]


def test_the_measures_are_those_of_the_summary(tmp_path):
    """`df summarize` of the same folder."""
    from stages.summary import summarize_run

    run = write_run(tmp_path / "run", kinds=("sum", "difference"))
    manifest = run / "round-1" / "build-masks" / "manifest.json"
    assert "repair_model" not in manifest.read_text()
    measures = {f"{m.section}: {m.measure}": m for m in summarize_run(run, 2)}
    rows = {row[0]: row[1] for row in page(run).table("measure")}
    assert rows.keys() == measures.keys()
    for name, measure in measures.items():
        digits = 1 if measure.section == "device-seconds" else 3
        assert rows[name].startswith(f"{measure.value:.{digits}f}"), name


def test_pairs_have_marks_on_both_sides_the_worst_first(shown):
    titles = [*shown.articles]
    assert len(titles) == 2 * 2 * 4
    outcomes = [re.search("outcome(.*?)reward", shown.articles[title]["text"])[1] for title in titles]
    assert outcomes == ["flagged"] * 2 + ["wrong"] * 4 + ["costlier"] * 2 + ["chosen"] * 8
    chosen = shown.articles["round 1: p0, sample 0, repair 0"]
    assert "How many?" in chosen["text"]
    assert [text.strip() for text in chosen["marked"]] == ["4", "3"]  # the masks that the file has
    assert f"repair {REPAIR}" in chosen["text"]
    assert "edit cost0.125" in chosen["text"]
    flagged = shown.articles["round 1: p1, sample 0, repair 1"]["text"]
    assert "auditoranswer_pasted" in flagged
    assert "evidenceseen" in flagged
    assert shown.source.count("<use href='#p") == len(titles) + len(shown.problems)
    assert shown.source.count("<image id=") == 4  # a problem's picture is there once
    assert "All 16 pairs" in shown.text


def write_rollouts(run, rewards, *, text="of"):
    """Of each problem the first sample's rewards by round, or `-` where a round did not roll it out; a second sample is
    scored the other way round. Nothing is made of the rollouts."""
    problems = write_problems(run.with_name(f"{run.name}-problems.parquet"), len(rewards))
    for number in range(1, max(map(len, rewards.values())) + 1):
        rows = [
            {"problem_id": name, "sample": sample, "ids": [1], "sampler_logprobs": [-1.0], "finish_reason": "stop",
             "reward": reward, "text": f"{name} {text} {number}" if sample == 0 else "second"}
            for name, of in rewards.items()
            if number <= len(of) and of[number - 1] != "-"
            for sample, reward in enumerate((of[number - 1], 0.0 if of[number - 1] else 1.0))
        ]  # fmt: skip
        write_step(run / f"round-{number}" / "rollout", "rollout", {}, {ROLLOUTS: rows}, inputs={"problems": problems})
    return run


def test_problems_are_chosen_by_the_first_samples_of_the_rounds(tmp_path):
    """The first two of each course by id. p5 is right in between, p6 and p8 are not scored where it counts, p7 is
    rolled out once."""
    rewards = {
        "p9": ["-", 0.0, 1.0], "p4": [0.5, 0.0, 0.0], "p2": [0.0, 1.0, 1.0], "p1": [0.0, None, 1.0],
        "p0": [0.0, 0.0, 1.0], "p3": [1.0, 0.0, "-"], "p5": [0.0, 1.0, 0.0], "p6": [None, 1.0, 1.0],
        "p7": ["-", 0.0, "-"], "p8": [0.0, None, 0.0],
    }  # fmt: skip
    found = page(write_rollouts(tmp_path / "run", rewards))
    assert {title: [row[:3] for row in problem["rows"]] for title, problem in found.problems.items()} == {
        "wrong, then right, 1 of 4: p0": [["1", "0", "wrong"], ["2", "0", "wrong"], ["3", "1.000", "right"]],
        "wrong, then right, 2 of 4: p1": [["1", "0", "wrong"], ["2", "none", "not scored"], ["3", "1.000", "right"]],
        "right, then wrong, 1 of 1: p3": [["1", "1.000", "right"], ["2", "0", "wrong"]],
        "never right, 1 of 1: p4": [["1", "0.500", "wrong"], ["2", "0", "wrong"], ["3", "0", "wrong"]],
    }
    shown = found.problems["right, then wrong, 1 of 1: p3"]
    assert "question How many?answer 3" in shown["text"]
    assert [row[3] for row in shown["rows"]] == ["p3 of 1", "p3 of 2"]
    assert found.source.count("<use href='#p") == found.source.count("<image id=") == len(found.problems)
    assert "left out" not in found.text


def test_one_round_has_no_rollouts_over_rounds(tmp_path):
    assert "<section" not in page(write_rollouts(tmp_path / "run", {"p0": [0.0], "p1": [1.0]})).source


def test_of_many_rounds_evenly_many_are_shown_without_their_problems_too(tmp_path):
    """Every 19/7 rounds from the first of 20."""
    run = write_rollouts(tmp_path / "run", {"p0": [0.0] * 20})
    (tmp_path / "run-problems.parquet").unlink()
    found = page(run)
    (problem,) = found.problems.values()
    assert [row[0] for row in problem["rows"]] == ["1", "4", "6", "9", "12", "15", "17", "20"]
    assert [row[3] for row in problem["rows"]] == [f"p0 of {row[0]}" for row in problem["rows"]]
    assert "How many?" not in problem["text"]
    assert f"{run}: without questions and pictures, since its problems are not where they were" in found.text


def test_rollouts_leave_the_gallery_its_room(tmp_path):
    """Two responses of 50 kB a problem: two problems are less than a quarter of a megabyte, three are more."""
    rewards = {"p0": [0.0, 1.0], "p1": [0.0, 1.0], "p2": [1.0, 0.0], "p3": [0.0, 0.0]}
    found = page(write_rollouts(tmp_path / "run", rewards, text="x" * 50_000), size=MEGABYTE)
    assert [*found.problems] == ["wrong, then right, 1 of 2: p0", "wrong, then right, 2 of 2: p1"]
    assert "2 of 4 are left out: the file has no room for them." in found.text


def test_filters_are_labelled_lists_of_what_there_is(shown):
    options = re.findall(r"<label>([^<]+) <select name='(\w+)'>(.*?)</select>", shown.source)
    found = {name: re.findall(r"<option value='\d+'>([^<]+)</option>", of) for _, name, of in options}
    assert found == {
        "round": ["1 (8)", "2 (8)"],
        "kind": ["difference (8)", "sum (8)"],
        "outcome": ["chosen (8)", "costlier (2)", "flagged (2)", "wrong (4)"],
        "category": ["answer_pasted (2)", "not flagged (14)"],
    }


def test_a_run_under_way_says_what_is_missing(tmp_path):
    run = write_run(tmp_path / "run")
    for step in ("round-2/train-policy", "evaluate-round-2"):
        (run / step / "manifest.json").unlink()
    found = page(run)
    assert "The base policy has sampled accuracy 0.250" in found.text
    assert "no trained policy is evaluated so far (110.0 device-seconds)" in found.text
    assert "Still missing: round-2/train-policy, evaluate-round-2." in found.text
    states = {row[0]: row[1] for row in found.table("step", "state")}
    assert states["round-2/train-policy"].startswith("missing: no manifest.json")
    assert states["round-2/build-masks"] == "complete"
    assert [point[0] for point in found.line("Entropy", "errors")] == ["0.5", "1"]
    assert len(found.articles) == 16


def test_the_result_is_of_the_last_round_that_was_evaluated(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "evaluate-round-2" / "manifest.json").unlink()
    write_scores(run / "evaluate-round-1", 2)
    found = page(run)
    assert "After 1 round sampled accuracy moved within its uncertainty from 0.250 to 0.500" in found.text
    assert "on 4 problems, for 75.0 device-seconds. Still missing: evaluate-round-2." in found.text
    assert [row[0] for row in found.table("policy")] == [
        "base policy", "policy after round 1", "gain, after round 1 over base",
    ]  # fmt: skip


def test_a_loop_is_measured_on_its_validation_problems(tmp_path):
    run = write_run(tmp_path / "run")
    for name in ("base", "round-2"):
        (run / f"evaluate-{name}").rename(run / f"validation-{name}")
    write_scores(run / "validation-round-1", 2)
    found = page(run)
    assert "After 2 rounds sampled accuracy moved within its uncertainty from 0.250 to 0.750" in found.text
    assert [line[2] for line in found.line("Accuracy", "greedy")] == ["0.250", "0.500", "0.750"]
    assert "Still missing" not in found.text


def test_a_repair_model_that_is_trained_again_is_a_step_of_its_round(tmp_path):
    """30 device-seconds between two rounds of 75: round 2 has them behind it, the policy of round 1 has not."""
    run = write_run(tmp_path / "run")
    for name in ("base", "round-2"):
        (run / f"evaluate-{name}").rename(run / f"validation-{name}")
    write_scores(run / "validation-round-1", 2)
    again = run / "round-1" / "rl-repair"
    write_step(again, "rl-repair", {"generate": 24.0, "train": 6.0}, {}, rows=(8, 5), dropped={"text_only_solvable": 3})
    found = page(run)
    assert "from 0.250 to 0.750" in found.text
    assert "on 4 problems, for 180.0 device-seconds." in found.text
    assert [point[1] for point in found.line("Accuracy", "greedy")] == ["0.0", "75.0", "180.0"]
    assert [point[1] for point in found.line("Edit cost", "selected repairs")] == ["35.0", "140.0"]
    assert [point[1] for point in found.line("Entropy", "errors")] == ["55.0", "75.0", "160.0", "180.0"]
    costs = {row[0]: row[-1] for row in found.table("stage", "generate")}
    assert costs == {"rollout": "20.0", "build-masks": "50.0", "train-policy": "80.0", "rl-repair": "30.0",
                     "evaluate": "300.0"}  # fmt: skip
    steps = found.table("step", "state")
    assert [row[0] for row in steps][2:5] == ["round-1/train-policy", "round-1/rl-repair", "round-2/rollout"]
    assert steps[3][1:5] == ["complete", "8", "5", "text only solvable 3"]
    assert {row[0]: row[1] for row in found.table("measure")}["device-seconds: rl-repair"] == "30.0"

    (again / "manifest.json").unlink()
    under_way = page(run)
    assert "for 150.0 device-seconds. Still missing: round-1/rl-repair." in under_way.text
    assert {row[0]: row[1] for row in under_way.table("step")}["round-1/rl-repair"].startswith("missing: no manifest")


def test_each_kind_of_problem_has_its_accuracies(tmp_path, monkeypatch):
    """Of the two sums the base has one right, the final policy both; of the two differences none and one."""
    run = write_run(tmp_path / "run", kinds=("sum", "difference"))
    found = page(run).table("kind", "policy")
    assert [(*row[:2], row[2][:6].rstrip(" ["), row[3][:6].rstrip(" ["), row[4]) for row in found] == [
        ("difference", "base policy", "0.000", "0.000", "2"),
        ("difference", "final policy", "0.500", "0.500", "2"),
        ("difference", "gain, final over base", "+0.500", "+0.500", "2"),
        ("sum", "base policy", "0.500", "0.500", "2"),
        ("sum", "final policy", "1.000", "1.000", "2"),
        ("sum", "gain, final over base", "+0.500", "+0.500", "2"),
    ]
    assert "0.500 [0.095, 0.905]" in found[1]  # Wilson's interval of 1 of 2
    monkeypatch.setattr("stages.summary.MOST_KINDS", 1)
    assert "By kind of problem" not in page(run).text


def test_problems_without_kinds_have_no_table_of_kinds(shown):
    assert "By kind of problem" not in shown.text


def test_evaluations_are_compared_with_the_first(tmp_path):
    """One of four problems right, then three, then none."""
    folders = [tmp_path / name for name in ("base", "ours", "theirs")]
    for folder, right in zip(folders, (1, 3, 0), strict=True):
        write_scores(folder, right, kinds=("sum", "difference"))
    found = page(*folders)
    assert "ours over base: sampled accuracy moved within its uncertainty from 0.250 to 0.750 (+0.500 [" in found.text
    assert [(row[0], row[2][:6].rstrip(" ["), row[3]) for row in found.table("policy")] == [
        ("base", "0.250", "4"), ("ours", "0.750", "4"), ("theirs", "0.000", "4"),
        ("gain, ours over base", "+0.500", "4"), ("gain, theirs over base", "-0.250", "4"),
    ]  # fmt: skip
    assert [(row[1], row[2][:6].rstrip(" [")) for row in found.table("kind") if row[0] == "sum"] == [
        ("base", "0.500"), ("ours", "1.000"), ("theirs", "0.000"),
        ("gain, ours over base", "+0.500"), ("gain, theirs over base", "-0.500"),
    ]  # fmt: skip
    assert "base: sampled accuracy 0.250 [" in page(folders[0]).text


def test_evaluations_on_other_problems_and_unfinished_ones_are_refused(tmp_path):
    for count in (4, 5):
        problems = write_problems(tmp_path / f"{count}.parquet", count)
        write_scores(tmp_path / f"on-{count}", 1, inputs={"problems": problems})
    with pytest.raises(ArtifactError, match=r"on-5: evaluated with other inputs\.problems than .*on-4"):
        page(tmp_path / "on-4", tmp_path / "on-5")
    Step.open(tmp_path / "begun", Plan("evaluate", {}, 0, {}))
    with pytest.raises(ArtifactError, match=r"begun: no manifest\.json"):
        page(tmp_path / "on-4", tmp_path / "begun")


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    (tmp_path / "run" / "1-sft-repair").mkdir(parents=True)
    found = page(tmp_path / "run")
    assert "Nothing is evaluated so far" in found.text
    assert {row[0]: row[1] for row in found.table("step")}["2-rl-repair"] == "missing: not begun"


def test_runs_stand_side_by_side(run, tmp_path):
    other = write_run(tmp_path / "other", final=1)
    found = page(run, other)
    assert "run: After 2 rounds sampled accuracy" in found.text
    assert "other: After 2 rounds sampled accuracy moved within its uncertainty from 0.250 to 0.250" in found.text
    assert [line[2] for line in found.line("Accuracy", "other: greedy")] == ["0.250", "0.250"]
    measures = {row[0]: row[1:] for row in found.table("measure", "run", "other")}
    assert [cell[:5] for cell in measures["final policy: greedy accuracy"]] == ["0.750", "0.250"]
    assert "<label>Run <select name='run'>" in found.source
    of_each = [f"never right, {place} of 4: p{place - 1}" for place in (1, 2)]
    assert [*found.problems] == [f"{name}, {title}" for name in ("run", "other") for title in of_each]


def test_without_tokenizer_and_problems_the_texts_differ_by_word(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", rounds=1)
    write_problems(tmp_path / "run-problems.parquet", 5)  # another file than the masks were built from
    monkeypatch.setattr("stages.pages.pairs.open_codec", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(Path, "is_dir", lambda path, real=Path.is_dir: path.name != "base" and real(path))
    (run / "round-1" / "train-policy" / "manifest.json").unlink()
    found = page(run)
    assert "differences by word, since no tokenizer of the run is left" in found.text
    assert "without questions and pictures" in found.text
    assert found.articles["round 1: p0, sample 0, repair 0"]["marked"] == ["4", "3"]
    assert "<image" not in found.source


def test_a_run_without_its_tokenizer_leaves_the_next_run_its_own(tmp_path, monkeypatch):
    runs = [write_run(tmp_path / name, rounds=1) for name in ("gone", "there")]
    find = pairs._codec
    monkeypatch.setattr(pairs, "_codec", lambda state, *of: None if state.folder == runs[0] else find(state, *of))
    text = page(*runs).text
    assert f"{runs[0] / 'round-1/build-masks'}: differences by word" in text
    assert text.count("differences by word") == 1


def test_nothing_is_loaded_and_no_other_script_runs(shown):
    links = re.findall(r"""(?:src|href|action|srcset)=['"]?([^'" >]*)""", shown.source)
    assert links
    assert all(link.startswith(("#p", "data:image/png;base64,")) for link in links)
    assert not re.search(r"url\(|@import|https?:", shown.source.replace("http-equiv", ""))
    (script,) = re.findall(r"<script>(.*?)</script>", shown.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in shown.source


def test_everything_to_look_at_or_to_use_has_a_name(shown):
    elements = shown.elements
    assert all(dict(at).get("aria-label") or dict(at).get("aria-hidden") for tag, at in elements if tag == "svg")
    assert shown.source.count("<select") == shown.source.count("<label>")
    ids = [dict(at)["id"] for _, at in elements if "id" in dict(at)]
    assert len(ids) == len(set(ids))


def test_texts_of_data_and_models_stay_texts(tmp_path):
    plain, hostile = (
        page(write_run(tmp_path / name, rounds=2, text=text, kinds=(text,)))
        for name, text in (("a", "x"), ("b", HOSTILE))
    )
    marks = {"mark", "/mark"}

    def outline(found):
        return [(tag, [name for name, _ in at]) for tag, at in found.elements if tag not in marks]

    assert outline(hostile) == outline(plain)
    assert all(at == [] for tag, at in hostile.elements if tag == "mark")
    assert hostile.text.count(MARKUP) > 20
    assert SHOWN in hostile.text
    assert_plain(hostile.text)
    assert len(hostile.problems) == 2
    for title, problem in hostile.problems.items():
        assert all(MARKUP in text for text in (title, *(row[3] for row in problem["rows"])))
    assert "onerror=x" not in re.sub("<script>.*</script>", "", "".join(re.findall(r"<[^>]*>", hostile.source)))


def test_names_of_folders_stay_texts(tmp_path):
    name = "<b onclick=x>'\"\x1b[2J"
    found = page(write_run(tmp_path / name, rounds=1), write_run(tmp_path / "other", rounds=1))
    assert "b" not in {tag for tag, at in found.elements if at and tag == "b"}
    assert "<b onclick=x>'\"\\x1b[2J: After 1 round" in found.text
    assert_plain(found.text)


def test_a_page_is_no_larger_than_asked_and_says_what_it_leaves_out(tmp_path):
    run = write_run(tmp_path / "run", rounds=2, count=60, side=72)  # noise: each picture some 15 kB
    whole = report_page([run], 5 * MEGABYTE)
    small = report_page([run], MEGABYTE)
    assert MEGABYTE < len(whole.encode()) < 5 * MEGABYTE
    assert MEGABYTE * 0.9 < len(small.encode()) <= MEGABYTE
    shown, of, left = re.search(r"(\d+) of (\d+) pairs.*?(\d+) are left out", Page(small).text).groups()
    assert (int(of), int(shown) + int(left), int(shown)) == (240, 240, len(Page(small).articles))
    outcomes = {dict(article["data"])["data-outcome"] for article in Page(small).articles.values()}
    assert len(outcomes) == 4  # each has some


def test_few_pairs_of_many_are_read(tmp_path, monkeypatch):
    """Row groups in which none is wanted among them."""
    monkeypatch.setattr("stages.pages.pairs.MOST", 2)
    found = page(write_run(tmp_path / "run", rounds=1, count=200))
    assert "2 of 400 pairs" in found.text
    assert [*found.articles] == ["round 1: p1, sample 0, repair 1", "round 1: p0, sample 0, repair 1"]


def test_each_outcome_has_pairs_however_many_rounds_there_are(monkeypatch):
    monkeypatch.setattr("stages.pages.pairs.MOST", 4)
    found = [
        Candidate(0, number, "p", 0, 0, 1.0, 0.1, False, None, selection)
        for selection in ("wrong", "chosen")
        for number in range(1, 11)
    ]
    shown = [(one.selection, one.round) for one in drawn(found)]
    assert shown == [("wrong", 1), ("chosen", 1), ("wrong", 2), ("chosen", 2)]


def test_a_study_is_a_line_a_variant(tmp_path):
    """Two seeds of grpo, right on a half after 100 device-seconds and on all after 200. After a round of 20 rollouts
    their mean is 0.75, and half its difference the standard error; after 100 device-seconds both are at 0.5."""
    study = tmp_path / "study"
    study.mkdir()
    ends = (("grpo", 0, [1.0, 0.0], 100.0), ("grpo", 1, [1.0, 1.0], 200.0), (MARKUP, 0, [1.0, 1.0], 100.0))
    runs = [study_run(variant, seed, end, cost=cost) for variant, seed, end, cost in ends]
    write_rows(study / "curves.parquet", CURVES, rows_of(runs))
    (run_folder(study, "difference", 3, None) / "1-sft-repair").mkdir(parents=True)
    under_way = page(study)
    assert "Not complete: difference with seed 3, round 0, 0.0 device-seconds so far." in under_way.text
    assert "Under way; done: runs on test problems: 3, runs that tune a learning rate: 0." in under_way.text
    lines = under_way.line("Sampled accuracy, test", "grpo (n = 2)", tables=3)
    assert [line[-1] for line in lines] == [
        ("0.75", "100.0", "15", "0.500", "0.500", "0.500"),
        ("1", "150.0", "20", "0.750", "0.500", "1.000"),
        ("1", "150.0", "20", "0.750", "0.500", "1.000"),
    ]
    assert "No step of 3 of 3 runs is on disk" in under_way.text
    row = {"variant": "grpo", "seed": None, "measure": "sampled accuracy", "value": 0.75, "low": 0.5, "high": 1.0,
           "n": 2, "note": None}  # fmt: skip
    failed = row | {"variant": "difference", "seed": 3, "measure": "failed", "value": 1.0, "low": None, "note": MARKUP}
    write_rows(study / "ablation.parquet", ABLATION, [row, failed])
    done = page(study)
    assert "Sampled accuracy on test problems, best first: grpo 0.750. Failed: 1." in done.text
    assert done.table("variant") == [["grpo", "0.750 [0.500, 1.000]"]]
    assert "Not complete" not in done.text
    assert done.table("failed variant") == [["difference", "3", MARKUP]]
    assert f"{MARKUP} (n = 1)" in done.text


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return page(write_study(tmp_path_factory.mktemp("written") / "study"))


def test_a_study_has_the_costs_and_the_rounds_of_its_variants(study):
    """Of the two runs of `ours` one has two rounds, the other one: both have the first, in which the entropies are 0.5
    and 1.5. `rival` has rolled out and repaired, which costs 35."""
    assert "Not complete: rival with seed 0, round 1, 35.0 device-seconds so far." in study.text
    costs = {row[0]: row[-1] for row in study.table("stage", "generate")}
    assert costs == {
        "ours (n = 2): rollout": "15.0", "ours (n = 2): build-masks": "37.5", "ours (n = 2): train-policy": "60.0",
        "cleared (n = 1): rollout": "10.0", "cleared (n = 1): build-masks": "25.0",
        "cleared (n = 1): train-policy": "40.0",
        "rival, not complete (n = 1): rollout": "10.0", "rival, not complete (n = 1): build-masks": "25.0",
    }  # fmt: skip
    assert study.line("Entropy", "ours (n = 2)") == [("1", "75.0", "1.000", "1.000", "1.000")]
    assert study.line("Feasible share", "rival, not complete (n = 1)") == [("1", "35.0", "1.000", "", "")]
    assert study.line("Edit cost", "cleared (n = 1)") == []
    steps = {row[0]: row[1:] for row in study.table("step", "times")}
    assert steps["ours (n = 2): build-masks"] == ["3", "36", "24", "unscored 12"]


def test_a_study_shows_rollouts_and_repairs_that_are_there_and_tells_of_others(study):
    assert "No step of 1 of 4 runs is on disk" in study.text
    assert (
        "The rollouts and repairs of 1 of 4 runs are not on disk (ablate.keep_rounds: false removes them" in study.text
    )
    assert [*study.problems] == [f"ours, seed 0, never right, {place} of 4: p{place - 1}" for place in (1, 2)]
    assert "Each variant is shown by its first run." in study.text
    assert len(study.articles) == 32
    assert study.articles["rival, seed 0, round 1: p0, sample 0, repair 0"]["marked"]
    options = re.findall(r"<select name='(\w+)'>(.*?)</select>", study.source)
    found = {name: re.findall(r"<option value='\d+'>([^<]+)</option>", of) for name, of in options}
    assert (found["variant"], found["seed"]) == (["ours (24)", "rival (8)"], ["0 (24)", "1 (8)"])
    assert "run" not in found
    assert study.source.count("<image id=") == 4  # a problem's picture is there once


def test_the_command_writes_the_page_and_says_where(run, tmp_path, typed):
    code, out, _ = typed("report", run, "--out", tmp_path / "page.html")
    assert (code, out) == (0, f"written to {tmp_path / 'page.html'}\n")
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    code, _, err = typed("report", run, run)
    assert (code, err) == (1, "error: 2 folders: give the file with --out\n")
    code, _, err = typed("report", tmp_path)
    assert code == 1
    assert f"{tmp_path}: no run of make all, no study of df ablate and no evaluation of df evaluate in it" in err


def test_long_lines_keep_their_ends():
    points = [Point(n, n, n) for n in range(1, 10 * LONGEST + 4)]
    kept = thinned(points)
    assert LONGEST * 0.9 < len(kept) <= LONGEST
    assert kept[-1] == points[-1]
    assert list(kept) == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.55, 0.86, [0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85]),
        (-3, 12, [0, 5, 10]),
        (0, 1e-7, None),
    ],
)
def test_ticks_are_round_numbers_in_between(low, high, expected):
    found = ticks(low, high)
    assert expected is None or found == expected
    assert 3 <= len(found) <= 7
    assert all(low <= tick <= high for tick in found)
