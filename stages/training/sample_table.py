"""Pairs that a round trains on as a table, for trackers that show some: pictures, texts, marks, rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from stages.artifacts.columns import GROUPS
from stages.artifacts.overlay import MarkedToken, within
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.rows import GroupRow
from stages.artifacts.store import iterate_rows, parquet_files
from stages.model.codec import Codec
from stages.repair.marked_pairs import marked_runs, pair_of_each_problem
from stages.untrusted.printable import told

Cell: TypeAlias = str | float | Image.Image | None
MOST_PAIRS = 16
_PICTURES = 4
"""Shown of one problem; a video has many frames."""
_SIZE = (480, 320)
"""Largest width and height of each."""
_MARKS = {"error": "[-{}-]", "repair": "{{+{}+}}"}
"""Around a span that the difference mask has, as `git diff --word-diff` writes them."""


def sample_table(groups: Path, problems: ProblemSet, codec: Codec) -> list[dict[str, Cell]]:
    """A pair of each of the first of these problems that have one in `groups`, by column; texts are nothing to obey."""
    rows = (row for row in iterate_rows(parquet_files(groups, GROUPS)[0], GROUPS) if row["problem_id"] in problems)
    pairs = pair_of_each_problem(rows)[:MOST_PAIRS]
    return [_row(problems[error["problem_id"]], error, repair, codec) for error, repair in pairs]


def _row(problem: Problem, error: GroupRow, repair: GroupRow, codec: Codec) -> dict[str, Cell]:
    texts: Mapping[str, str] = {
        "problem": problem.problem_id,
        "question": problem.question,
        "answer": problem.answer,
        "error": _marked_text("error", marked_runs(codec, error["ids"], error["mask"])),
        "repair": _marked_text("repair", marked_runs(codec, repair["ids"], repair["mask"])),
    }
    rewards = {"error reward": error["reward"], "repair reward": repair["reward"]}
    return {"pictures": _pictures(problem), **{name: told(text) for name, text in texts.items()}, **rewards}


def _marked_text(role: str, runs: Sequence[MarkedToken]) -> str:
    return "".join(_MARKS[role].format(run.text) if run.marked else run.text for run in runs)


def _pictures(problem: Problem) -> Image.Image | None:
    """The first of the problem's images and frames beside each other; None where it has none."""
    frames = problem.video.frames if problem.video else []
    shown = [within(_SIZE, picture) for picture in islice(chain(problem.images, frames), _PICTURES)]
    if not shown:
        return None
    sheet = Image.new("RGB", (sum(one.width for one in shown), max(one.height for one in shown)))
    left = 0
    for picture in shown:
        sheet.paste(picture, (left, 0))
        left += picture.width
    return sheet
