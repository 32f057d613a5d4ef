"""The repair set, second half: the annotated sheet, checked -> repair_set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.bad_rows import BadRow, OnBadRow
from stages.artifacts.columns import ERRORS, REPAIR_SET
from stages.artifacts.label_studio import Annotated, is_unicode, read_annotated
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import problem_of_row
from stages.artifacts.rows import AnyRow
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows
from stages.checks.problem_check import ProblemCheck
from stages.core.alignment import edit_cost
from stages.core.holdout import order_heldout_last
from stages.core.selection import is_correct, share_of
from stages.declared import declare_repair_set
from stages.engines.loading import open_codec
from stages.errors import DataError, RowError
from stages.recipe import Recipe
from stages.reward.opening import check_reward, open_reward
from stages.reward.rewards import score_all
from stages.seeds import Purpose, derive_seed

REMEDIES = {
    "unknown_error": "no error of this sheet; give the sheet that was annotated with --sheet",
    "changed_error": "its error is not the sheet's; leave that field as it was",
    "annotated_twice": "an earlier row annotates the same error; keep one of them",
    "not_one_text": "more than one text, or none at all; the repair is a single one",
    "empty": "no repair; write one, or skip the task",
    "not_unicode": "half of a surrogate pair in the repair, which is no letter; write it again",
    "unchanged": "the repair is the error; edit it, or skip the task",
    "wrong": "the answer of the repair is not the reference; edit it until it is",
    "unscored": "the answer of the repair could not be scored; state it plainly, or raise reward.timeout_s",
    "repair_too_long": "the repair has more tokens than the model takes; shorten it",
    "vision_token": "the repair holds a token of the model that stands for pixels; take it out",
    "rewritten": "the edit cost is too large; edit fewer words, or raise repair_set.max_edit_cost",
}
"""Why a row is bad, and what to do about it."""


class Bad(NamedTuple):
    """A row that cannot be used, and why."""

    error_id: str
    reason: str
    place: str


class Pair(NamedTuple):
    """A row of `errors` and its repair."""

    place: str
    row: AnyRow
    repair: str


@dataclass(frozen=True)
class Reading:
    """What an annotated sheet holds."""

    errors: int
    """Rows of the sheet."""
    pairs: list[Pair]
    bad: list[Bad]
    left_out: Counter[str]
    """Errors without a repair: `skipped` by the annotator, or `not_annotated`."""
    superseded: int
    """Annotations that a later one of the same task replaces."""


@dataclass(frozen=True)
class ReadRepairSet:
    """`df repair-set read`: the checks are part of planning, so nothing is written where a row is bad."""

    recipe: Recipe
    sheet: Path
    annotated: Path
    policy: Path
    on_bad_row: OnBadRow = "fail"

    @cached_property
    def declared(self) -> Plan:
        return declare_repair_set(self.recipe, self.sheet, self.annotated, self.policy)

    @property
    def inputs(self) -> Mapping[str, Path | Input]:
        return self.declared.inputs

    def plan(self) -> Plan:
        check_reward(self.recipe.reward)
        reading = self.reading
        if reading.bad and self.on_bad_row == "fail":
            raise DataError(f"{self.annotated}: {_report(reading.bad)}")
        if not reading.pairs:
            raise DataError(
                f"{self.annotated}: no repair that can be used, of {reading.errors} errors ("
                f"{_counts([*reading.left_out.elements(), *(bad.reason for bad in reading.bad)])}); "
                "annotate the sheet and export it again"
            )
        self.order  # noqa: B018, raises where there is none
        left_out = [BadRow(bad.error_id, bad.reason, f"{bad.place}: {REMEDIES[bad.reason]}") for bad in reading.bad]
        return replace(self.declared, dropped=left_out)

    def run(self, step: Step) -> None:
        reading = self.reading
        step.write_table(REPAIR_SET, [_repair_set_row(reading.pairs[i]) for i in self.order])
        step.tally.rows_in = reading.errors
        step.tally.rows_out = len(reading.pairs)
        step.tally.dropped.update(reading.left_out)
        step.tally.counts["superseded_annotations"] = reading.superseded
        step.finish()

    @cached_property
    def reading(self) -> Reading:
        """The sheet, every row of it checked."""
        sheet = {row["error_id"]: row for row in iterate_rows(self.sheet / f"{ERRORS.name}.parquet", ERRORS)}
        given = list(read_annotated(self.annotated))
        done = [item for item in given if item.texts is not None]
        without = sheet.keys() - {item.error_id for item in done}
        skipped = without & {item.error_id for item in given if item.skipped}
        left_out = Counter(skipped=len(skipped), not_annotated=len(without - skipped))
        first = list(_first_look(done, sheet))
        second = self._second_look([found for found in first if isinstance(found, Pair)])
        found = [found for found in first if isinstance(found, Bad)] + second
        return Reading(
            errors=len(sheet),
            pairs=[pair for pair in found if isinstance(pair, Pair)],
            bad=[bad for bad in found if isinstance(bad, Bad)],
            left_out=left_out,
            superseded=sum(item.superseded for item in given),
        )

    @cached_property
    def order(self) -> list[int]:
        """Which pair comes where: shuffled; no problem or image of the held-out end occurs before it.

        Raises:
            DataError: no set of problems is as large as the held-out end.
        """
        rows = [pair.row for pair in self.reading.pairs]
        heldout = share_of(len(rows), self.recipe.sft.heldout_share)
        seed = derive_seed(self.recipe.seed, Purpose.REPAIR_SET_ORDER)
        try:
            return order_heldout_last(_groups(rows), heldout, seed)
        except ValueError as error:
            raise DataError(
                f"{self.annotated}: {error} (problems that share an image are one group); "
                "change sft.heldout_share, here and for df sft-repair, so that it comes to that many"
            ) from error

    def _second_look(self, pairs: Sequence[Pair]) -> list[Pair | Bad]:
        """Pairs whose repair is right, near its error and a response that the model can have."""
        with open_reward(self.recipe.reward) as reward:
            rewards = score_all(reward, [pair.repair for pair in pairs], [_problem(pair) for pair in pairs])
        check = ProblemCheck(self.recipe, open_codec(self.policy, self.recipe))
        return [
            pair if (bad := self._obstacle(pair, reward, check)) is None else bad
            for pair, reward in zip(pairs, rewards, strict=True)
        ]

    def _obstacle(self, pair: Pair, reward: float | None, check: ProblemCheck) -> Bad | None:
        try:
            check.check_response(pair.place, "repair", pair.repair)
        except RowError as error:
            return Bad(pair.row["error_id"], error.reason, pair.place)
        if reward is None:
            return Bad(pair.row["error_id"], "unscored", pair.place)
        if not is_correct(reward, self.recipe.reward.threshold):
            return Bad(pair.row["error_id"], "wrong", f"{pair.place}, reference {pair.row['answer']}")
        cost = edit_cost(*_token_ids(check.codec.tokenizer, pair))
        if cost > self.recipe.repair_set.max_edit_cost:
            return Bad(pair.row["error_id"], "rewritten", f"{pair.place}, {cost:.2f}")
        return None


def _repair_set_row(pair: Pair) -> AnyRow:
    return pair.row | {"problem_id": pair.row["error_id"], "repair": pair.repair}


def _first_look(done: Sequence[Annotated], sheet: Mapping[str, AnyRow]) -> Iterator[Pair | Bad]:
    """Pairs, and what is no pair; nothing is scored."""
    seen: set[str] = set()
    for item in done:
        texts = item.texts or []
        row, error_id = sheet.get(item.error_id or ""), item.error_id or "no id"
        place = f"{item.place} ({item.error_id})"
        if row is None:
            yield Bad(error_id, "unknown_error", place)
        elif item.error != row["error"]:
            yield Bad(error_id, "changed_error", place)
        elif item.error_id in seen:
            yield Bad(error_id, "annotated_twice", place)
        elif len(texts) > 1 or not all(isinstance(text, str) for text in texts):
            yield Bad(error_id, "not_one_text", place)
        elif not all(map(is_unicode, texts)):
            yield Bad(error_id, "not_unicode", place)
        elif not "".join(texts).strip():
            yield Bad(error_id, "empty", place)
        elif (repair := _with_margins_of(row["error"], texts[0])) == row["error"]:
            yield Bad(error_id, "unchanged", place)
        else:
            yield Pair(place, row, repair)
        seen.add(str(item.error_id))


def _with_margins_of(error: str, repair: str) -> str:
    """The repair with the error's own line ends, and white space at both ends, which editors change unseen."""
    bare = error.strip()
    start = error.index(bare)
    if "\r" not in error:
        repair = repair.replace("\r\n", "\n")
    return error[:start] + repair.strip() + error[start + len(bare) :]


def _problem(pair: Pair) -> AnyRow:
    """What a reward function is given."""
    row = {name: value for name, value in pair.row.items() if name != "error_id"}
    return problem_of_row(row, pair.place).as_row()


def _token_ids(tokenizer: Any, pair: Pair) -> list[list[int]]:
    """Of error and repair, without end tokens."""
    texts = (pair.row["error"], pair.repair)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def _groups(rows: Sequence[AnyRow]) -> list[int]:
    """A number for each row, equal where two rows are of one problem or chained by images or frames in common."""
    parents = list(range(len(rows)))

    def root(row: int) -> int:
        while parents[row] != row:
            row = parents[row]
        return row

    first: dict[Hashable, int] = {}
    for i, row in enumerate(rows):
        pictures = [*row["images"], *(row["video"] or [])]
        for key in (row["problem_id"], *(picture["bytes"] for picture in pictures)):
            parents[root(i)] = root(first.setdefault(key, i))
    return [root(i) for i in range(len(rows))]


def _report(bad: Sequence[Bad]) -> str:
    """Every bad row by reason, with what to do about it."""
    places: dict[str, list[str]] = defaultdict(list)
    for found in bad:
        places[found.reason].append(found.place)
    lines = [f"  {len(places[reason])} {reason}: {REMEDIES[reason]}: {'; '.join(places[reason])}" for reason in places]
    first = f"{len(bad)} bad rows, nothing was written; mend them, or leave them out with --on-bad-row drop"
    return "\n".join([first, *lines])


def _counts(reasons: Sequence[str]) -> str:
    return ", ".join(f"{rows} {reason}" for reason, rows in sorted(Counter(reasons).items()))
