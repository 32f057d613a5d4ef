"""Differences as people read them: by hand, and such that both texts can be read off."""

import re

from hypothesis import given
from hypothesis import strategies as st

from stages.artifacts.word_difference import difference_text, marked_words

TEXTS = st.text(alphabet="ab 12.+\n", max_size=30)


def test_differences_by_hand():
    assert difference_text("1 + 2 = 4.", "1 + 2 = 3.") == "1 + 2 = [-4-]{+3+}."
    assert difference_text("It is 12.", "It is not 12.") in ("It is {+not +}12.", "It is{+ not+} 12.")
    assert difference_text("a b c", "a c") in ("a [-b -]c", "a[- b-] c")
    assert difference_text("same", "same") == "same"
    assert difference_text("", "new") == "{+new+}"


def test_marks_by_hand():
    error, repair = marked_words("1 + 2 = 4.", "1 + 2 = 3.")
    assert [token.text for token in error if token.marked] == ["4"]
    assert [token.text for token in repair if token.marked] == ["3"]
    error, repair = marked_words("a b", "a b c")
    assert not any(token.marked for token in error)
    assert "".join(token.text for token in repair if token.marked) == " c"


@given(TEXTS, TEXTS)
def test_both_texts_can_be_read_off(error, repair):
    text = difference_text(error, repair)
    assert re.sub(r"\[-|-\]", "", re.sub(r"\{\+.*?\+\}", "", text, flags=re.DOTALL)) == error
    assert re.sub(r"\{\+|\+\}", "", re.sub(r"\[-.*?-\]", "", text, flags=re.DOTALL)) == repair
    for words, whole in zip(marked_words(error, repair), (error, repair), strict=True):
        assert "".join(word.text for word in words) == whole
