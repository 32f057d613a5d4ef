"""The pipeline on local files: it asks no server, and unpickles nothing. A hook in its processes tells."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
RECORDER = Path(__file__).parent / "record_network_and_pickles"
SMALL = (
    "sft.epochs=1", "repair_rl.problems=16", "repair_rl.iterations=1", "repair_rl.errors_per_iteration=6",
    "repair_rl.errors_per_step=6", "repair_rl.repairs_per_error=4", "rollout.problems=8", "train.problems_per_step=8",
    "evaluate.draws=1",
)  # fmt: skip
COMMANDS = """
import json, sys
from df_cli.main import main
for arguments in json.load(sys.stdin):
    sys.argv = ["df", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""
ASK = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=0.1)"
UNPICKLE = "import pickle, collections; open('a.pkl', 'wb').close(); pickle.loads(pickle.dumps(collections.Counter()))"


@dataclass(frozen=True)
class Cell:
    """Starts Python without a network, where this machine allows it, and with the hook that writes `events`."""

    folder: Path
    namespace: bool

    def python(self, code: str, given: str = "") -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
        environment |= {
            "PYTHONPATH": os.pathsep.join((str(RECORDER), str(ROOT))),
            "DF_TEST_EVENTS": str(self.folder / "events"),
            "HF_HOME": str(self.folder / "hub"),  # nothing in it that could stand in for an answer
        }
        command = [*(("unshare", "-rn") if self.namespace else ()), sys.executable, "-c", code]
        return subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=500, env=environment, cwd=self.folder
        )

    def events(self, *kinds: str) -> list[str]:
        file = self.folder / "events"
        lines = file.read_text().splitlines() if file.is_file() else []
        return [line for line in lines if line.startswith(kinds)]


@pytest.fixture
def cell(tmp_path):
    return Cell(tmp_path, has_namespaces())


def has_namespaces() -> bool:
    """Says so where there are none: the hook alone then tells."""
    try:
        tried = subprocess.run(["unshare", "-rn", "true"], capture_output=True, text=True)
        reason = tried.stderr.strip() if tried.returncode else ""
    except FileNotFoundError as error:
        reason = str(error)
    if reason:
        warnings.warn(f"no network namespace on this machine ({reason}): the audit hook alone watches", stacklevel=2)
    return not reason


def first_rows(file: Path, count: int, folder: Path) -> Path:
    pq.write_table(pq.read_table(file).slice(0, count), folder / file.name)
    return folder / file.name


@pytest.mark.timeout(600)
def test_the_pipeline_asks_no_server_and_unpickles_nothing(cell, digits):
    local = cell.folder
    (local / "mine").mkdir()
    for folder in (local, local / "mine"):
        Image.new("RGB", (8, 8)).save(folder / "strip.png")
        (folder / "rows.jsonl").write_text(json.dumps({"q": "?", "a": "2", "i": "strip.png"}) + "\n")
        (folder / "rows.csv").write_text("q,a,i\n?,2,strip.png\n")
    (local / "mine" / "rows.csv").unlink()
    train, test, repairs = (
        first_rows(digits / name, count, local)
        for name, count in (("problems_train.parquet", 40), ("problems_test.parquet", 8), ("repair_set.parquet", 40))
    )
    base = digits / "base"
    settings = ["--recipe", "digits"] + [word for setting in SMALL for word in ("--set", setting)]
    columns = ["--question", "q", "--answer", "a", "--images", "i"]
    problems = ["--problems", train, "--policy", base]
    commands = [
        *(["import-problems", local / f, *columns, "--out", f + "-out"] for f in ("rows.jsonl", "rows.csv", "mine")),
        ["import-problems", test, "--question", "question", "--answer", "answer", "--images", "images", "--out", "own"],
        ["sft-repair", "--repair-set", repairs, "--model", base, "--out", "sft", *settings],
        ["rl-repair", *problems, "--repair-model", "sft", "--repair-set", repairs, "--out", "rl", *settings],
        ["rollout", *problems, "--out", "rollout", *settings],
        ["build-masks", *problems, "--rollouts", "rollout", "--repair-model", "rl", "--out", "masks", *settings],
        ["train-policy", *problems, "--groups", "masks", "--out", "policy", *settings],
        ["evaluate", "--problems", test, "--model", "policy", "--out", "scores", *settings],
    ]  # fmt: skip
    done = cell.python(COMMANDS, json.dumps([[str(word) for word in words] for words in commands]))

    assert done.returncode == 0, done.stderr[-3000:]
    for words in commands:
        assert (local / words[words.index("--out") + 1] / "manifest.json").is_file()
    assert cell.events() == []


def test_the_hook_tells_of_a_connection(cell):
    done = cell.python(ASK)
    assert done.returncode == 1
    if cell.namespace:
        assert "Network is unreachable" in done.stderr
    assert cell.events("socket.connect (('192.0.2.1', 9),)")


def test_the_hook_tells_of_a_pickle(cell):
    assert cell.python(UNPICKLE).returncode == 0
    assert cell.events("open ('a.pkl'")
    assert cell.events("pickle.find_class ('collections', 'Counter')")
