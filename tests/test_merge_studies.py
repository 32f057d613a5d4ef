"""`df merge-studies`: runs of several studies in one file, compared only where they may be; README's table of them."""

import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from forked import df
from stages.artifacts.columns import ABLATION, CURVES
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError
from stages.recipe import RECIPES
from stages.study.curves import Point, Run, measure_of, read_runs, rows_of
from stages.study.figure import draw
from stages.study.merging import compared, merge, select

RECORD = RECIPES / "studies" / "worded_digits.parquet"
README = Path(__file__).parents[1] / "README.md"


def run(variant, seed, accuracy, problems="test", budget=9.0, **others):
    """Two problems, both right with this chance after nine device-seconds; words after a mode count half of it."""
    points = [
        Point(number, 9.0 * number, 8.0 * number, {mode: np.full(2, value) for mode in ("sampled", "greedy")} | {
            f"{mode} read right": np.full(2, value / 2) for mode in ("sampled", "greedy")
        })
        for number, value in enumerate((0.25, accuracy))
    ]  # fmt: skip
    if variant == "base":
        points, budget = points[:1], None
    return Run(
        variant, seed, problems, key=f"{variant}{seed}{problems}{accuracy}", points=points, budget=budget, **others
    )


def study(folder, *runs):
    folder.mkdir()
    write_rows(folder / "curves.parquet", CURVES, rows_of(runs))
    return folder


def test_seeds_that_were_run_apart_are_one_study(tmp_path):
    for seed in (0, 1):
        study(tmp_path / str(seed), run("base", 0, 0), run("ours", seed, 0.5 + seed / 4), run("theirs", seed, 0.5))
    done = df(
        "merge-studies",
        str(tmp_path / "0"),
        str(tmp_path / "1"),
        "--baseline",
        "theirs",
        "--out",
        str(tmp_path / "all"),
    )
    assert done.returncode == 0, done.stderr
    assert [(r.variant, r.seed) for r in read_runs(tmp_path / "all/curves.parquet")] == [
        ("base", 0), ("ours", 0), ("theirs", 0), ("ours", 1), ("theirs", 1),
    ]  # fmt: skip
    rows = {
        (r["variant"], r["seed"], r["measure"]): r for r in iterate_rows(tmp_path / "all/ablation.parquet", ABLATION)
    }
    assert rows["ours", None, "sampled accuracy"]["value"] == pytest.approx(0.625)
    assert rows["ours", None, "greedy difference to theirs"]["value"] == pytest.approx(0.125)
    drawn = {
        text.text for text in ElementTree.parse(tmp_path / "all/curves.svg").iter("{http://www.w3.org/2000/svg}text")
    }
    assert {"ours (n = 2)", "theirs (n = 2)", "sampled accuracy"} <= drawn
    again = df("merge-studies", str(tmp_path / "0"), "--out", str(tmp_path / "all"))
    assert (again.returncode, "a study is there already" in again.stderr) == (1, True)


def test_studies_of_other_machines_lie_in_one_file_under_their_names(tmp_path):
    """Without names a run of one seed has two results; the file keeps the names when it is merged again."""
    slow, fast = (study(tmp_path / name, run("ours", 0, value)) for name, value in (("slow", 0.5), ("fast", 0.75)))
    with pytest.raises(DataError, match=r"fast: ours, seed 0 on test problems is there twice, with other values"):
        merge([(None, slow), (None, fast)])
    both = study(tmp_path / "both", *merge([("slow", slow), ("fast", fast)]))
    runs = merge([(None, both), ("fast", fast)])
    assert [(r.study, r.result.values["greedy"][0]) for r in runs] == [("slow", 0.5), ("fast", 0.75)]
    assert select(runs, ["fast/ours"]) == runs[1:]
    with pytest.raises(DataError, match=r"slow/ours, seed 0, and fast/ours, seed 0, came to other values; choose one"):
        compared(runs, "ours", [])


def test_what_was_counted_afterwards_is_kept_whichever_comes_first(tmp_path):
    counted = run("ours", 0, 0.5)
    points = [
        replace(point, values={"sampled": point.values["sampled"], "greedy": point.values["greedy"]})
        for point in counted.points
    ]
    sources = [
        (None, study(tmp_path / "before", replace(counted, points=points))),
        (None, study(tmp_path / "after", counted)),
    ]
    for order in (sources, sources[::-1]):
        (merged,) = merge(order)
        assert "greedy read right" in merged.points[1].values


def test_the_base_policies_of_the_studies_chosen_go_along():
    runs = [run(name, 0, 0.5, study=of) for of, name in product(("a", "b", "c"), ("base", "ours", "theirs"))]
    chosen = select(runs, ["b/theirs", "a/ours", "b/theirs"])
    assert [(r.study, r.variant) for r in chosen] == [("a", "base"), ("b", "base"), ("b", "theirs"), ("a", "ours")]
    tested, _ = compared(chosen, "ours", [])
    assert [(r.study, r.variant) for r in tested] == [("a", "base"), ("b", "theirs"), ("a", "ours")]
    with pytest.raises(DataError, match="no run of d/ours; there are a/base, a/ours, a/theirs, b/base"):
        select(runs, ["d/ours"])


def test_other_measures_are_compared_by_their_name():
    runs = [run("ours", 0, 1.0), run("theirs", 0, 0.5), run("theirs", 1000, 0.5, "validation", budget=3.0)]
    rows = {(r["variant"], r["measure"]): r["value"] for r in compared(runs, "theirs", [4.5], "read right")[1]}
    assert rows["ours", "sampled read right"] == pytest.approx(0.5)
    assert rows["ours", "sampled difference to theirs at 4.5 device-seconds"] == pytest.approx((0.625 - 0.375) / 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 8.0}, r"read at the same device-seconds; theirs, seed 0: 9.0, ours, seed 0: 8.0"),
        (
            {"points": [Point(1, 9.0, 8, {"sampled": np.ones(3), "greedy": np.ones(3)})]},
            "measured on the same problems",
        ),
        ({"points": [Point(1, 9.0, 8, {"sampled": np.ones(2), "greedy": np.ones(2)})]}, "nothing that is called 'read"),
        ({"variant": "other", "problems": "validation"}, "no run of the baseline ours on test problems"),
    ],
)
def test_what_does_not_belong_together_is_not_compared(changes, message):
    with pytest.raises(DataError, match=message):
        compared([run("theirs", 0, 0.5), replace(run("ours", 0, 0.5), **changes)], "ours", [], "read right")


def test_studies_on_other_problems_are_told_by_their_base_policies():
    runs = [run("ours", 0, 0.5, study="a"), run("theirs", 0, 0.5, study="b")]
    bases = [run("base", 0, 0.5, study="a"), replace(runs[0], variant="base", study="b", budget=None)]
    with pytest.raises(DataError, match=r"a/base, seed 0, and b/base, seed 0, came to other values: their problems"):
        compared([*bases, *runs], "ours", [])


OURS = {
    "none": "half/difference_untrained",
    "900": "repair-rl/difference_even",
    "900 and repair RL": "reasons/difference_all",
}


def cells_of_readme():
    """By measure, set and device-seconds: the cells of the table that says how it compares with GRPO."""
    measured, found = "", {}
    for line in README.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"\| \*\*(?:right final answers \((.+)\)|(answers .+))\*\* \|", line):
            measured = heading[1] or heading[2]
        elif row := re.match(r"\| ([^|]+), (\d+) \| (0\.\d{3} .+) \|$", line):
            found[measured, row[1], row[2]] = row[3].split(" | ")
    return found


@pytest.mark.parametrize("measured", ["accuracy", "answers right from end to end"])
def test_the_readmes_table_is_what_the_record_says(measured):
    runs = select(merge([(None, RECORD)]), ["reasons/grpo", *OURS.values()])
    found = {(r["variant"], r["measure"]): r for r in compared(runs, "grpo", [100.0], measured)[1] if r["seed"] is None}
    cells = {key[1:]: of for key, of in cells_of_readme().items() if key[0] == measured}
    assert len(cells) == 5
    for (repairs, seconds), told in cells.items():
        name, where = OURS[repairs].partition("/")[2], " at 100 device-seconds" if seconds == "100" else ""
        expected = []
        for mode in ("sampled", "greedy"):
            accuracies = [found[of, f"{mode} {measured}{where}"]["value"] for of in ("grpo", name)]
            difference = found[name, f"{mode} difference to grpo{where}"]
            low, high = difference["low"], difference["high"]
            words = f"{difference['value']:+.3f} [{low:.3f}, {high:.3f}]"
            expected += [*(f"{value:.3f}" for value in accuracies), f"**{words}**" if low > 0 or high < 0 else words]
        assert told == expected


def test_the_readmes_figure_is_drawn_from_the_record(tmp_path):
    runs = select(merge([(None, RECORD)]), ["reasons/grpo", OURS["none"], OURS["900"]])
    measured = "answers right from end to end"
    draw(compared(runs, "grpo", [], measured)[0], tmp_path / "curves.svg", measured)
    drawn, shown = (
        [float(number) for number in re.findall(r"-?\d+\.\d+", file.read_text(encoding="utf-8"))]
        for file in (tmp_path / "curves.svg", RECORD.with_name("worded_digits_reasons.svg"))
    )
    assert drawn == pytest.approx(shown, abs=0.1)


def test_what_the_readme_says_of_answers_to_half_the_set_is_what_the_record_says():
    (line,) = [line for line in README.read_text(encoding="utf-8").splitlines() if "GRPO after such answers" in line]
    arms = ["half/sft_then_grpo", "half/sft_then_difference_even", "half/difference_even", "reasons/grpo"]
    record, expected = merge([(None, RECORD)]), []
    for measured, arm in product(("accuracy", "answers right from end to end"), arms):
        tested = [run for run in select(record, [arm]) if run.variant != "base" and run.problems == "test"]
        means = [
            np.mean([run.result.values[measure_of(mode, measured)] for run in tested if run.seed < 3])
            for mode in ("sampled", "greedy")
        ]
        expected.append(" / ".join(f"{mean:.3f}" for mean in means))
    assert re.findall(r"0\.\d{3} / 0\.\d{3}", line) == expected
