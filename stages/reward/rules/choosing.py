"""Does a statement name the right choice?"""

import re
from collections.abc import Sequence

from stages.reward.rules.choices import (
    contradicts,
    explains,
    is_maths,
    is_sure,
    leaves_open,
    letter_of,
    named_by_text,
    named_choice,
    right_place,
)
from stages.reward.rules.equality import Comparison, Verdict, compare
from stages.reward.rules.quantities import number, quantity
from stages.reward.rules.typography import clean


def is_choice(gold: str, choices: Sequence[str] | None) -> bool:
    """Whether a cleaned gold is a choice: one of `choices` by letter or text, or without any a letter."""
    return right_place(gold, choices) is not None if choices else letter_of(gold) is not None


def compare_choice(text: str, gold: str, choices: Sequence[str] | None) -> Verdict | Comparison:
    """Whether a cleaned statement names the gold's choice; without choices, the letter alone can be judged."""
    if not choices:
        place = letter_of(gold)
        named = named_choice(text)
        return float(named is not None and named.place == place and is_sure(named) and not leaves_open(named))
    place = right_place(gold, choices)
    assert place is not None
    text = _without_last_letter(text, choices)
    by_text, named = named_by_text(text, choices), named_choice(text)
    if by_text and named is not None and not named.beside and named.place != by_text[0]:
        # "(b)" where the text of another choice is (b): only capitals tell the letter from the text.
        return float(named.place == place and clean(choices[by_text[0]]) != text)
    if by_text:
        return float(by_text == [place])
    if named is None:
        return compare(text, clean(choices[place])) if is_maths(text) else 0.0
    if named.place != place:
        return 0.0
    if not named.beside or place in named_by_text(named.beside, choices):
        return float(not named.beside or not contradicts(named, choices))
    if explains(named, choices):
        return 1.0
    if is_maths(named.beside) and not named_by_text(named.beside, choices):
        return compare(named.beside, clean(choices[place]))
    return float(is_sure(named) and not contradicts(named, choices))


_LAST_LETTER = re.compile(r"(.+?)(?:, ?| )(?:(?:option|choice|answer) )?\(?([A-J])\)?", re.IGNORECASE)


def _without_last_letter(text: str, choices: Sequence[str]) -> str:
    """``45 degrees, option B`` as ``45 degrees``, where they agree."""
    last = _LAST_LETTER.fullmatch(text)
    return last[1] if last and named_by_text(last[1], choices) == [letter_of(last[2])] else text


def names_no_choice(text: str, choices: Sequence[str]) -> bool:
    """Whether a cleaned statement is a value on the way, which is none of the choices."""
    return is_maths(text) and named_choice(text) is None and not named_by_text(text, choices)


def with_text_behind(statement: str, behind: str, choices: Sequence[str] | None) -> str:
    """``C`` and the sentence behind it as one statement, where that sentence is a value or the text of a choice.

    In ``The answer is C. 45°.`` the full stop belongs to the letter; ``The answer is C. Both sides agree.`` explains.
    """
    named = named_choice(statement)
    if not choices or not behind or named is None or named.beside:
        return statement
    stated = named_by_text(behind, choices) or number(quantity(behind).body) is not None
    return f"{statement}. {behind}" if stated else statement
