"""Somebody's dataset -> `problems`, and `dropped` with what did not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from stages.artifacts.columns import DROPPED, PROBLEMS
from stages.artifacts.plan import Plan
from stages.artifacts.problems import EncodedImages
from stages.artifacts.rows import AnyRow, DroppedRow
from stages.artifacts.step import Step
from stages.artifacts.writing import writing
from stages.errors import ArtifactError, DataError
from stages.importing.cells import Unfit
from stages.importing.holdout import rows_to_test
from stages.importing.images import ImageReader
from stages.importing.presets import Layout
from stages.importing.rows import RowReader
from stages.importing.source import Source, open_source
from stages.reward.extraction import gold_answer, number, stated

TRAIN = replace(PROBLEMS, name=f"problems_train/{PROBLEMS.name}")
TEST = replace(PROBLEMS, name=f"problems_test/{PROBLEMS.name}")
"""The two sides of a split, each in a folder of its own."""
ROWS_PER_SHARD = 512
"""Rows of the dataset, those that do not fit included; as many images are in memory at once."""


@dataclass(frozen=True)
class Understood:
    """What became of one row, for reading; `reason` is set where it does not fit."""

    problem_id: str
    question: str = ""
    images: str = ""
    """Width x height of each."""
    answer: str = ""
    read_as: str = ""
    """How the rule-based reward reads the answer."""
    kind: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ImportProblems:
    """`df import-problems`. Files that a table's image paths name are not part of the plan; those of a folder are."""

    source: str
    layout: Layout
    split: str | None = None
    config_name: str | None = None
    limit: int | None = None
    split_test: float | None = None
    """Share of the problems that is kept apart, in `problems_test` beside `problems_train`."""

    @property
    def inputs(self) -> dict[str, Path]:
        return {"source": Path(self.source)}

    def plan(self) -> Plan:
        source = self._open()
        self._check_some_row_fits(source)
        recipe: dict[str, Any] = {
            "layout": asdict(self.layout),
            "split": self.split,
            "config_name": self.config_name,
            "limit": self.limit,
            "content": source.content,
        }
        recipe |= {} if self.split_test is None else {"split_test": self.split_test}
        return Plan("import-problems", recipe, 0, self.inputs)

    def run(self, step: Step) -> None:
        source = self._open()
        reader = RowReader(self.layout, ImageReader(source.folder))
        tested = self._tested(source)
        if tested is not None:
            _make_folders(step)
        numbered = enumerate(source.rows(self.limit))
        for index, shard in groupby(numbered, lambda item: item[0] // ROWS_PER_SHARD):
            if step.has_shard(PROBLEMS if tested is None else TRAIN, index):
                for row_number, row in shard:
                    reader.problem_id(row_number, row)
            else:
                _write(step, index, reader, shard, tested)
        step.finish()

    def _tested(self, source: Source) -> set[int] | None:
        """Numbers of the rows that are kept apart; None where none are to be.

        Raises:
            DataError: no image, with all of its problems, is so small a share.
        """
        if self.split_test is None:
            return None
        tested = rows_to_test(self._fitting(source), self.split_test)
        if not tested:
            raise DataError(
                f"{self.source}: --split-test {self.split_test:g} leaves no problem to test on, since problems with an "
                "image in common stay together; raise it"
            )
        return tested

    def _fitting(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        reader = RowReader(self.layout, ImageReader(source.folder))
        for row_number, row in enumerate(source.rows(self.limit)):
            with suppress(Unfit):
                yield row_number, reader.problem(row)

    def _check_some_row_fits(self, source: Source) -> None:
        """Raises DataError where none does; reading ends at the first one that fits."""
        reader = RowReader(self.layout, ImageReader(source.folder))
        dropped: Counter[str] = Counter()
        details: list[str] = []
        for row_number, row in enumerate(source.rows(self.limit)):
            reader.problem_id(row_number, row)
            try:
                reader.problem(row)
            except Unfit as reason:
                dropped[str(reason)] += 1
                details += [reason.detail] if reason.detail and not details else []
            else:
                return
        first = f" (the first: {details[0]})" if details else ""
        raise DataError(f"{self.source}: no row of {dropped.total()} fits: {_counted(dropped)}{first}")

    def sample(self, rows: int) -> list[Understood]:
        """What the first rows are understood as; nothing is written."""
        source = self._open()
        reader = RowReader(self.layout, ImageReader(source.folder))
        limit = rows if self.limit is None else min(rows, self.limit)
        return [_understood(reader, row_number, row) for row_number, row in enumerate(source.rows(limit))]

    def check_output(self, out: Path) -> None:
        """Refuse an output inside the folder that is read: a second run would read it too.

        Raises:
            ArtifactError: it lies there.
        """
        if self.split_test is not None and out.name in ("problems_train", "problems_test"):
            raise ArtifactError(
                f"{out}: --split-test makes problems_train and problems_test in the folder; give {out.parent}"
            )
        if Path(self.source).is_dir() and out.resolve().is_relative_to(Path(self.source).resolve()):
            raise ArtifactError(f"{out}: lies in {self.source}, which is read; name another with --out")

    def _open(self) -> Source:
        source = open_source(self.source, self.split, self.config_name)
        layout = self.layout
        columns = [layout.question, *layout.images, layout.answer, *layout.choices, layout.kind, layout.id]
        source.check_columns([name for name in columns if name])
        return source


def _make_folders(step: Step) -> None:
    for spec in (TRAIN, TEST):
        folder = (step.out / spec.name).parent
        with writing(folder):
            folder.mkdir(exist_ok=True)


def _write(
    step: Step, index: int, reader: RowReader, rows: Iterator[tuple[int, dict[str, Any]]], tested: set[int] | None
) -> None:
    """Write a shard; where rows are kept apart, one of each side."""
    problems: list[AnyRow] = []
    apart: list[AnyRow] = []
    dropped: list[DroppedRow] = []
    for row_number, row in rows:
        problem_id = reader.problem_id(row_number, row)
        try:
            side = apart if tested is not None and row_number in tested else problems
            side.append({"problem_id": problem_id} | reader.problem(row))
        except Unfit as reason:
            dropped.append({"problem_id": problem_id, "reason": str(reason), "detail": reason.detail})
    every = problems + apart
    step.tally.rows_in += len(every) + len(dropped)
    step.tally.rows_out += len(every)
    step.tally.dropped.update(entry["reason"] for entry in dropped)
    step.tally.counts["without_images"] += sum(not problem["images"] for problem in every)
    step.tally.counts["several_images"] += sum(len(problem["images"]) > 1 for problem in every)
    step.tally.counts["answers_the_rules_cannot_score"] += sum(
        gold_answer(problem["answer"]) is None for problem in every
    )
    if tested is None:
        step.write_shards(index, {PROBLEMS: problems, DROPPED: dropped})
    else:
        step.tally.counts["test_problems"] += len(apart)
        step.write_shards(index, {TRAIN: problems, TEST: apart, DROPPED: dropped})


def _understood(reader: RowReader, row_number: int, row: dict[str, Any]) -> Understood:
    problem_id = reader.problem_id(row_number, row)
    try:
        problem = reader.problem(row)
    except Unfit as reason:
        return Understood(problem_id, reason=f"{reason}: {reason.detail}" if reason.detail else str(reason))
    images = EncodedImages(problem["images"], problem_id)
    sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
    answer, kind = problem["answer"], problem["kind"] or ""
    return Understood(problem_id, problem["question"], sizes, answer, _read_as(answer), kind)


def _read_as(answer: str) -> str:
    gold = gold_answer(answer)
    if gold is None:
        return "cannot be scored by rules"
    body, unit = stated(gold).body, stated(gold).unit
    value = number(body)
    return " ".join(part for part in (f"number {value}" if value is not None else body, unit) if part)


def _counted(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in sorted(dropped.items()))
