"""Output as in a pipe 120 columns wide, wherever the tests run."""

import pytest
from workspace import GROUP, PAIR, PROBLEM, ROLLOUT, ROOT

from stages.artifacts.columns import GROUPS, PROBLEMS, REPAIR_SET, ROLLOUTS
from stages.artifacts.store import write_rows

FORCING = ("CLICOLOR_FORCE", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    """Here and in the processes that a test starts."""
    for name in FORCING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """Inputs of every command; the checkpoint is the digits policy."""
    monkeypatch.chdir(tmp_path)
    for folder in ("rollouts", "groups", "model"):
        (tmp_path / folder).mkdir()
    write_rows(tmp_path / "problems.parquet", PROBLEMS, [PROBLEM])
    write_rows(tmp_path / "repair_set.parquet", REPAIR_SET, [PAIR, PAIR | {"problem_id": "p1"}])
    write_rows(tmp_path / "rollouts" / "rollouts-00000.parquet", ROLLOUTS, [ROLLOUT])
    write_rows(tmp_path / "groups" / "groups-00000.parquet", GROUPS, [GROUP])
    for file in (ROOT / "data" / "digits" / "base").iterdir():
        (tmp_path / "model" / file.name).symlink_to(file)
    return tmp_path


@pytest.fixture
def df(typed):
    """`typed`, of a line and further words."""
    return lambda line, *more: typed(*line.split(), *more)
