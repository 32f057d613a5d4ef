"""What reaches a terminal, a log or a page: no control sequence, no markup, no key, whoever wrote the text."""

import logging
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.untrusted import printable as telling
from stages.untrusted.printable import keep_secret, redacted, told, told_lines

KEY = "sk-\"quoted\\'0123456789"


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Keys, log records and warnings as they were."""
    monkeypatch.setattr(telling, "_secrets", set())
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, größer 数字 \u0663 😀", "plain, größer 数字 \u0663 😀"),
        ("two\nlines\tand a\u00a0space\u3000", "two\nlines\tand a\u00a0space\u3000"),
        ("windows\r\nline", "windows\nline"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b[2J\x1b[H", r"\x1b[2J\x1b[H"),
        ("good\rbad", r"good\rbad"),
        ("\x00\x08\x7f", r"\x00\x08\x7f"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202efdp.exe\u2066\u061c", r"\u202efdp.exe\u2066\u061c"),
        ("\u2028\u2029\ufeff\u00ad", r"\u2028\u2029\ufeff\xad"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("می\u200cخواهم क्\u200dष", "می\u200cخواهم क्\u200dष"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text, expected):
    assert told(text) == expected


@given(st.text())
def test_nothing_but_letters_spaces_and_newlines_is_left(text):
    left = told(text)
    assert all(letter.isprintable() or letter.isspace() or letter in "\u200c\u200d\u200e\u200f" for letter in left)
    assert not set(left) & {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))}
    assert told(left) == left


def test_further_lines_are_indented():
    assert told_lines("first\nerror: second") == "first\n  error: second"


@pytest.mark.parametrize(
    "quoted", [KEY, repr(KEY), "Bearer " + KEY, "sk-\\\"quoted\\\\'0123456789", "sk-%22quoted%5C%270123456789"]
)
def test_a_key_is_left_out_however_it_is_quoted(quoted):
    keep_secret(KEY)
    assert "0123456789" not in redacted(f"a {quoted} b")
    assert redacted("a b") == "a b"


def test_a_word_that_is_no_key_is_no_secret():
    keep_secret("EMPTY")
    keep_secret("")
    assert redacted("EMPTY") == "EMPTY"


def test_log_records_and_their_tracebacks_are_told(caplog):
    keep_secret(KEY)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpcore").debug("headers %r", {"x-echo": KEY.encode()})
    try:
        raise ValueError(f"\x1b[2J {KEY}")
    except ValueError:
        logging.getLogger("some.library").exception("failed\r\x1b]0;x\x07\nerror: forged")
    assert "0123456789" not in caplog.text
    assert not {"\x1b", "\r", "\x07"} & set(caplog.text)
    assert "\n  error: forged" in caplog.text
    assert r"ValueError: \x1b[2J ***" in caplog.text


def test_a_process_without_logging_set_up_tells_too():
    code = """
import logging, warnings
from stages.untrusted.printable import guard_logs
guard_logs()
logging.getLogger("a").warning("%s", "\x1b[2J")
warnings.warn("\x1b]0;x")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[0] == r"\x1b[2J"
    assert r"UserWarning: \x1b]0;x" in done.stderr
    assert "\x1b" not in done.stderr
