"""`<image>`, `<image 1>`, `<image_1>` and `<image1>` in a question: taken out, or put into words."""

from __future__ import annotations

import re
from itertools import pairwise

from stages.importing.cells import Unfit

_PLACEHOLDER = re.compile(r"<image(?:[ _]?(\d{1,3}))?>", re.IGNORECASE)


class Placeholders:
    """One row's placeholders; those without a number count from 1 through question and choices."""

    def __init__(self, images: int) -> None:
        self._images = images
        self._unnumbered = 0

    def in_words(self, text: str) -> str:
        """The text with `image 1` for a placeholder, which says what the prompt's order of images shows.

        A run at the start or end that names every image in order says nothing more and is taken out, unless the
        sentence goes on with it or needs it ("shown in <image 1>").

        Raises:
            Unfit: `placeholder_without_image`.
        """
        found = list(_PLACEHOLDER.finditer(text))
        numbers = [self._number(match[1]) for match in found]
        if any(not 1 <= number <= self._images for number in numbers):
            raise Unfit("placeholder_without_image")
        every = list(range(1, self._images + 1))
        if found and numbers[: self._images] == every and not _gap(text, found[: self._images], 0):
            rest = text[found[self._images - 1].end() :]
            if not rest.lstrip()[:1].islower():
                return self._rendered(rest, numbers[self._images :])
        if found and numbers[-self._images :] == every and not _gap(text, found[-self._images :], None):
            rest = text[: found[-self._images].start()]
            if rest.rstrip()[-1:] in ".?!:;)":
                return self._rendered(rest, numbers[: -self._images])
        return self._rendered(text, numbers)

    def _number(self, digits: str | None) -> int:
        if digits is None:
            self._unnumbered += 1
        return int(digits) if digits else self._unnumbered

    @staticmethod
    def _rendered(text: str, numbers: list[int]) -> str:
        for number in numbers:
            match = _PLACEHOLDER.search(text)
            assert match is not None
            before, after = text[: match.start()], text[match.end() :]
            left = " " if before and before[-1] not in " \n\t([\"'" else ""
            right = " " if after[:1].isalnum() or after.startswith("<") else ""
            text = f"{before}{left}image {number}{right}{after}"
        return text.strip()


def _gap(text: str, run: list[re.Match[str]], start: int | None) -> str:
    """What stands between the placeholders of a run, and before it (`start` 0) or after it (None)."""
    between = [text[one.end() : two.start()] for one, two in pairwise(run)]
    edge = text[: run[0].start()] if start == 0 else text[run[-1].end() :]
    return "".join([edge, *between]).strip()
