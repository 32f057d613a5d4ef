"""Problems that a stage can work on: looked at whole, pixels included, before any compute."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.artifacts.bad_rows import BadRow, OnBadRow, refuse
from stages.artifacts.columns import TableSpec
from stages.artifacts.problems import PROBLEMS_AT_ONCE, Problem, ProblemSet
from stages.artifacts.responses import Limits, check_responses
from stages.errors import RowError
from stages.model.codec import Codec
from stages.model.prompts import DRAFT_MARK, placeholders, policy_prompt
from stages.recipe import Recipe
from stages.reward.extraction import MAX_ANSWER_CHARS, gold_answer
from stages.reward.rules.choosing import is_choice
from stages.runtime import processes
from stages.runtime.batching import batched
from stages.runtime.progress import track, untold

RESPONSES = ("error", "repair", "chosen", "rejected", "preferred")
"""Columns of a repair set, of preference data and of `problems` that hold whole responses."""

_QUICK = 4 * PROBLEMS_AT_ONCE
"""So many problems are looked at without telling how far it is."""


@dataclass(frozen=True)
class ProblemCheck:
    """What a problem must be for one recipe and one model."""

    recipe: Recipe
    codec: Codec
    repairs: bool = False
    """Whether repair prompts are made of them."""

    def usable(self, problems: ProblemSet, ids: Sequence[str], on_bad_row: OnBadRow) -> ProblemSet:
        """The problems of these ids in this order, each looked at; bad ones are refused or left out.

        Images are decoded by as many threads as there are cores; several processes share the work.

        Raises:
            DataError: one is bad and bad rows are refused, or none is left.
            ModelError: there is a video, and the model takes none.
        """
        found = processes.spread(problems.in_file_order(ids), lambda share: list(self._look(problems, share)))
        return problems.only(ids, [bad for bad in found if bad is not None], on_bad_row)

    def usable_of(self, path: Path, spec: TableSpec[Any], problems: ProblemSet, on_bad_row: OnBadRow) -> ProblemSet:
        """The problems of `rollouts` or `groups`, responses looked at too; a group with a bad row is bad.

        Raises:
            DataError, ModelError: as `usable`.
        """
        limits = Limits(len(self.codec.tokenizer), self.codec.max_length, self.codec.banned_ids)
        responses = check_responses(path, spec, problems.knows, limits)
        refuse(responses.bad, on_bad_row, path, left=len(responses.problem_ids) - len(responses.bad))
        excluded = {row.problem_id for row in responses.bad}
        ids = [name for name in responses.problem_ids if name in problems and name not in excluded]
        chosen = self.usable(problems, ids, on_bad_row)
        chosen.bad += responses.bad
        return chosen

    def _look(self, problems: ProblemSet, ids: Sequence[str]) -> Iterator[BadRow | None]:
        told = track("looking at the problems", len(ids), "problems") if len(ids) > _QUICK else nullcontext(untold)
        with ThreadPoolExecutor(os.cpu_count()) as threads, told as advance:
            for names in batched(ids, PROBLEMS_AT_ONCE):
                yield from threads.map(self._look_at_pixels, [self._read(problems, name) for name in names])
                advance(len(names))

    def _read(self, problems: ProblemSet, name: str) -> Problem | BadRow:
        try:
            problem = problems[name]
            self._check_texts(problem)
        except RowError as error:
            return BadRow.of(name, error)
        if problem.video is not None:
            policy_prompt(self.codec.processor, self.recipe.prompt, Problem.asking("", (), problem.video))
        return problem

    def _look_at_pixels(self, problem: Problem | BadRow) -> BadRow | None:
        if isinstance(problem, BadRow):
            return problem
        try:
            self._check_pixels(problem)
        except RowError as error:
            return BadRow.of(problem.problem_id, error)
        return None

    def _check_texts(self, problem: Problem) -> None:
        """Raises RowError where a text cannot be used."""
        name = f"problem {problem.problem_id}"
        if self.recipe.reward.name == "math" and gold_answer(problem.answer) is None:
            raise RowError(
                "answer_unreadable",
                f"{name}: the rules read no answer in {problem.answer[:60]!r} ({len(problem.answer)} characters, at "
                f"most {MAX_ANSWER_CHARS}); state it bare, as in 18, or take another reward.name",
            )
        if self.recipe.reward.name == "math":
            check_choices(name, problem)
        shown = (problem.question, problem.answer, problem.preferred)
        if self.repairs and any(DRAFT_MARK in (text or "") for text in shown):
            raise RowError(
                "private_use_character", f"{name}: its text holds the private-use character U+E000; take it out"
            )
        self._check_length(name, "question", problem.question)
        in_prompts = placeholders(self.codec.processor)
        self._check_tokens(name, "question", problem.question, in_prompts)
        self._check_tokens(name, "answer", problem.answer, in_prompts)
        for column in RESPONSES:
            self.check_response(name, column, problem.extra.get(column) or "")

    def check_response(self, name: str, column: str, text: str) -> None:
        """Raises RowError where a whole response is too long, or holds a token that is never sampled."""
        self._check_length(name, column, text)
        self._check_tokens(name, column, text, self._banned)

    @cached_property
    def _banned(self) -> tuple[str, ...]:
        """Placeholders, and tokens whose log-prob is minus infinity in a response."""
        ids = [token for token in self.codec.banned_ids if token < len(self.codec.tokenizer)]
        return (*placeholders(self.codec.processor), *self.codec.tokenizer.convert_ids_to_tokens(ids))

    def _check_tokens(self, name: str, column: str, text: str, refused: Sequence[str]) -> None:
        for token in refused:
            if token in text:
                raise RowError(
                    "vision_token", f"{name}: its {column} holds {token}, which stands for pixels; take it out"
                )

    def _check_pixels(self, problem: Problem) -> None:
        """Raises RowError where an image or a frame cannot be used."""
        for index, image in enumerate(problem.images):
            self._check_size(f"problem {problem.problem_id} image {index}", image.height, image.width)
        if problem.video is not None:
            problem.video.decoded()

    def _check_length(self, name: str, column: str, text: str) -> None:
        """A text of fewer bytes than the model takes tokens is not counted."""
        room = self.codec.max_length
        if room is None or len(text.encode()) < room:
            return
        tokens = len(self.codec.tokenizer(text, add_special_tokens=False)["input_ids"])
        if tokens >= room:
            raise RowError(
                f"{column}_too_long",
                f"{name}: its {column} has {tokens} tokens, and the model takes {room} in all; shorten it or drop the "
                "row",
            )

    def _check_size(self, name: str, height: int, width: int) -> None:
        """Ask the model's image processor, where it can tell, whether it takes an image of this size."""
        processor: Any = self.codec.processor.image_processor
        if hasattr(processor, "get_number_of_image_patches"):
            try:
                processor.get_number_of_image_patches(height, width, {})
            except ValueError as error:
                raise RowError(
                    "image_size_refused",
                    f"{name}: {type(processor).__name__} takes no image of {width}x{height} pixels ({error}); crop it "
                    "or drop the row",
                ) from error


def check_choices(name: str, problem: Problem) -> None:
    """Raises RowError where a problem's choices cannot be read, or its answer is none of them."""
    choices = problem.choices
    if choices is None:
        return
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise RowError("choices_unreadable", f"{name}: choices are {choices!r}; give each a text, or make them null")
    if not is_choice(gold_answer(problem.answer) or "", choices):
        raise RowError(
            "answer_not_a_choice",
            f"{name}: answer {problem.answer[:60]!r} is neither the letter nor the text of one of its {len(choices)} "
            "choices; state its letter, or make choices null",
        )
