"""Output as in a pipe 120 columns wide, wherever the tests run."""

import pytest

FORCING = ("CLICOLOR_FORCE", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """Here and in the processes that a test starts."""
    for name in FORCING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
