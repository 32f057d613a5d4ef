"""What models, datasets, servers and file names say, as a terminal or a log may have it: nothing to obey, no key."""

from __future__ import annotations

import json
import logging
import traceback
import unicodedata
import warnings
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_KEPT = "\n\t\u200c\u200d\u200e\u200f"
"""Joiners and marks among them, which scripts need and which change nothing but the letters beside them."""
_SHORTEST_SECRET = 8
"""Characters; servers that want no key are given a word."""
_plain_warning = warnings.formatwarning
_secrets: set[str] = set()


def told(text: str) -> str:
    """The text with control characters, bidirectional overrides, invisible letters and halves of letters as escapes.

    Spaces, tabs and newlines stay. Every key that `keep_secret` was given is `***`.
    """
    plain = redacted(text).replace("\r\n", "\n")
    return plain if plain.isprintable() else "".join(map(_visible, plain))


def counted(counts: Mapping[str, int]) -> str:
    """How many there are of each, in words: `length 3, empty 1`."""
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()) if count) or "none"


def told_lines(text: str) -> str:
    """The same, with further lines indented: none of them can pass for a message of its own."""
    return told(text).replace("\n", "\n  ")


def redacted(text: str) -> str:
    """The text without the keys, however they are quoted."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def keep_secret(key: str) -> None:
    """Keep a key out of all that is told from here on, and out of this process's logs, whoever writes them."""
    if len(key) >= _SHORTEST_SECRET:
        _secrets.update({key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe="")})
        guard_logs()


def guard_logs() -> None:
    """From here on log records and warnings of this process go through `told_lines`."""
    logging.setLogRecordFactory(_ToldRecord)
    warnings.formatwarning = _told_warning


class _ToldRecord(logging.LogRecord):
    def getMessage(self) -> str:
        if self.exc_info and self.exc_info[0] is not None and not self.exc_text:
            self.exc_text = told("".join(traceback.format_exception(*self.exc_info)).rstrip())
        return told_lines(super().getMessage())


def _told_warning(*arguments: Any, **options: Any) -> str:
    return told(_plain_warning(*arguments, **options))


def _visible(letter: str) -> str:
    if letter.isprintable() or letter in _KEPT or unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode()
