"""A dataset's row -> a problem, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

from stages.errors import DataError
from stages.importing.cells import Unfit, as_list, cell, text
from stages.importing.images import ImageReader
from stages.importing.messages import bare_answer, exchange
from stages.importing.placeholders import Placeholders
from stages.importing.presets import AnswerForm, Layout

LETTERS = "ABCDEFGHIJ"
"""As many choices as the rule-based reward knows letters for."""
ASK_FOR_LETTER = "Answer with the letter of the right choice."
_INDEX = re.compile("0*[0-9]")
_LETTER = re.compile(r"\(?([A-Ja-j])\)?[.:]?")


class RowReader:
    """Makes problems of rows; it remembers which ids it has seen (8 bytes of hash each)."""

    def __init__(self, layout: Layout, images: ImageReader) -> None:
        self._layout = layout
        self._images = images
        self._seen: set[bytes] = set()

    def problem_id(self, number: int, row: Mapping[str, Any]) -> str:
        """The row's id: from its column, or from its number where there is no column or no text in it.

        Raises:
            DataError: an id that stands twice.
        """
        column = self._layout.id
        try:
            name = text(cell(row, column)) if column else ""
        except Unfit:  # as `problem` will say
            name = ""
        if not name:
            return f"row-{number:07d}"
        key = blake2b(name.encode(), digest_size=8).digest()
        if key in self._seen:
            raise DataError(
                f"row {number}: id {name[:60]!r} in column {column} stands twice; ids join the artifacts: "
                "name a column of unique ids with --id, or make ids from row numbers with --id ''"
            )
        self._seen.add(key)
        return name

    def problem(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """`problems`' columns but the id.

        Raises:
            Unfit: with the reason.
        """
        layout = self._layout
        if layout.id and not text(cell(row, layout.id)):
            raise Unfit("id_missing")
        answer = self._answer(row)
        choices = self._choices(row)
        images = self._read_images(row)
        placeholders = Placeholders(len(images))
        asked = cell(row, layout.question)
        said = exchange(asked)
        asked = said.question if said else text(asked)
        question = placeholders.in_words(asked or layout.empty_question or "")
        if not question:
            raise Unfit("question_missing")
        lines = [question]
        for column, note in layout.notes:
            if value := text(cell(row, column)):
                lines.append(note.replace("{}", value))
        if choices:
            answer = right_letter(answer, choices, layout.answer_form)
            choices = [placeholders.in_words(choice) for choice in choices]
            lines += [*choice_lines(choices), ASK_FOR_LETTER]
        elif layout.choices_in_question and (letter := _LETTER.fullmatch(answer)):
            answer = letter[1].upper()
            lines.append(ASK_FOR_LETTER)
        kind = text(cell(row, layout.kind)) if layout.kind else ""
        return {
            "question": "\n".join(lines),
            "images": images,
            "answer": answer,
            "kind": kind or None,
            "choices": choices or None,
        }

    def _answer(self, row: Mapping[str, Any]) -> str:
        value = cell(row, self._layout.answer)
        if said := exchange(value):
            value = said.response
        if said or self._layout.answer_in_response:
            value = bare_answer(text(value))
        several = as_list(value)
        if several is not None and len(several) > 1:
            if not isinstance(value, str) or any(isinstance(item, str) for item in several):
                raise Unfit("answer_several")
            several = None  # a text such as "[2, 5]" is one answer: an interval or a vector
        answer = text(several[0] if several else None if several == [] else value)
        if not answer or answer in self._layout.no_answer:
            raise Unfit("answer_missing")
        return answer

    def _choices(self, row: Mapping[str, Any]) -> list[str]:
        columns = self._layout.choices
        values = [cell(row, column) for column in columns]
        listed: list[Any] | None = values
        if len(columns) == 1:
            listed = as_list(values[0])
            if listed is None and not text(values[0]):
                listed = []
        if listed is None:
            raise Unfit("choices_unreadable")
        choices = [" ".join(text(value).split()) for value in _without_last_nulls(listed)]
        if not all(choices):
            raise Unfit("choices_unreadable")
        if len(choices) > len(LETTERS):
            raise Unfit("choices_over_10")
        return choices

    def _read_images(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        columns = self._layout.images
        values = [cell(row, column) for column in columns]
        if columns[0].endswith("?") and values == [None]:
            return []
        if len(columns) > 1:
            values = _without_last_nulls(values)
        elif (listed := as_list(values[0])) is not None:
            return [self._images.read(value) for value in listed]
        if not values:
            raise Unfit("image_missing")
        return [self._images.read(value) for value in values]


def choice_lines(choices: Sequence[str]) -> list[str]:
    """`A. …` lines; one line of letters where the choices are no more than their letters."""
    letters = LETTERS[: len(choices)]
    if list(choices) == list(letters):
        return [f"Choices: {', '.join(letters)}"]
    return [f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True)]


def right_letter(answer: str, choices: Sequence[str], form: AnswerForm) -> str:
    """The letter of the right choice.

    Raises:
        Unfit: `answer_not_a_choice`; `answer_ambiguous`, where it names two.
    """
    answer = " ".join(answer.split())
    letters = LETTERS[: len(choices)]
    named: set[str] = set()
    if form in ("text", "either"):
        named |= {letter for letter, choice in zip(letters, choices, strict=True) if choice == answer}
    if form in ("letter", "either") and (match := _LETTER.fullmatch(answer)) and match[1].upper() in letters:
        named.add(match[1].upper())
    if form == "index" and _INDEX.fullmatch(answer) and int(answer[-1]) < len(choices):
        named.add(letters[int(answer[-1])])
    if not named:
        raise Unfit("answer_not_a_choice")
    if len(named) > 1:
        raise Unfit("answer_ambiguous")
    return named.pop()


def _without_last_nulls(values: Sequence[Any]) -> list[Any]:
    kept = list(values)
    while kept and (kept[-1] is None or kept[-1] == ""):
        kept.pop()
    return kept
