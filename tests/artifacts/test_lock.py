"""Two processes on one output folder: the second is told who is there, and no dead one keeps it."""

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import pytest

from stages.artifacts.columns import METRICS
from stages.artifacts.lock import LOCK, lock_output
from stages.artifacts.manifests import MANIFEST, PLAN, read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.step import Plan, Step
from stages.errors import ArtifactError

ROOT = Path(__file__).parents[2]
HOLDER = """
import os, signal, sys
from pathlib import Path
from types import MappingProxyType
from stages.artifacts.lock import lock_output
{imports}
with lock_output(Path(sys.argv[1])):
    child = {child}
    print(child, flush=True)
    signal.pause()
"""
WORKER = """
from stages.reward.answers import AnswerScorer
def worker():
    scorer = AnswerScorer(workers=1)
    assert scorer.score_many([r"Answer: $\\sqrt{8}$"], [r"2\\sqrt{2}"]) == [1.0]
    globals()["kept"] = scorer
    return scorer._workers[0]._process.pid
"""
FORK = """
def fork():
    child = os.fork()
    if not child:
        signal.pause()
    return child
"""


class OneShard:
    """The smallest stage; `meanwhile` happens while it runs."""

    inputs = MappingProxyType({})

    def __init__(self, meanwhile=lambda: None):
        self.meanwhile = meanwhile

    def plan(self):
        return Plan("test", {}, 0, {})

    def run(self, step):
        step.write_shards(0, {METRICS: [{"step": 1, "metric": "loss", "value": 0.5}]})
        self.meanwhile()
        step.finish()


@contextmanager
def holder(out, child="os.getpid()", imports=""):
    """A process that holds the lock, and the id of its child."""
    code = HOLDER.replace("{imports}", imports).replace("{child}", child)
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as owner:
        pid = int(owner.stdout.readline())
        try:
            yield owner, pid
        finally:
            for process in (owner.pid, pid):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)


def test_the_second_process_is_told_who_writes_there(tmp_path):
    out = tmp_path / "out"
    with holder(out) as (owner, _):
        with pytest.raises(ArtifactError) as caught:
            execute(OneShard(), out)
        assert re.fullmatch(
            rf"{out}: process {owner.pid} on {re.escape(socket.gethostname())} has been writing here since "
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\+00:00; wait for it, stop it, or give another --out",
            str(caught.value),
        )
        assert [file.name for file in out.iterdir()] == [LOCK]


def test_a_step_that_is_overwritten_or_stopped_halfway_is_locked_too(tmp_path):
    out = tmp_path / "out"
    Step.open(out, OneShard().plan())
    with holder(out), pytest.raises(ArtifactError, match="has been writing here since"):
        execute(OneShard(), out)
    execute(OneShard(), out)
    with holder(out), pytest.raises(ArtifactError, match="has been writing here since"):
        execute(OneShard(), out, overwrite=True)


@pytest.mark.parametrize(("child", "imports"), [("worker()", WORKER), ("fork()", FORK)])
def test_the_lock_of_a_killed_process_is_free_at_once_though_a_child_of_it_lives(child, imports, tmp_path):
    out = tmp_path / "out"
    with holder(out, child, imports) as (owner, child_id):
        os.kill(child_id, signal.SIGSTOP)  # or a worker would notice that its owner died, and end
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert (out / LOCK).read_text().startswith(f"process {owner.pid} on ")
        outcome = execute(OneShard(), out)
        os.kill(child_id, 0)  # it lives
    assert outcome.ran
    assert sorted(file.name for file in out.iterdir()) == [MANIFEST, "metrics-00000.parquet", PLAN]


def test_the_lock_is_held_to_the_end_and_is_no_output(tmp_path):
    out, seen = tmp_path / "out", []

    def second_process():
        code = "import sys; from pathlib import Path; from stages.artifacts.lock import lock_output\n"
        code += "with lock_output(Path(sys.argv[1])): pass"
        done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, cwd=ROOT)
        seen.append(done.stderr.splitlines()[-1])

    class Finished(OneShard):
        def run(self, step):
            super().run(step)
            second_process()  # the manifest is written, and the files of the folder have been read

    execute(Finished(second_process), out)
    assert len(seen) == 2
    assert all(f"process {os.getpid()} on" in line for line in seen)
    assert read_manifest(out)["files"].keys() == {"metrics-00000.parquet"}
    assert not (out / LOCK).exists()


def test_a_complete_output_needs_no_lock_and_a_dry_run_takes_none(tmp_path, monkeypatch):
    execute(OneShard(), tmp_path / "out")

    def refuse(*_):
        raise AssertionError("a lock was asked for")

    monkeypatch.setattr("fcntl.lockf", refuse)
    assert not execute(OneShard(), tmp_path / "out").ran
    assert not execute(OneShard(), tmp_path / "new", dry_run=True).ran
    assert not (tmp_path / "new").exists()
    with pytest.raises(AssertionError, match="a lock was asked for"):
        execute(OneShard(), tmp_path / "new")


def test_a_step_that_fails_gives_its_lock_back(tmp_path):
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        execute(OneShard(fail), tmp_path / "out")
    assert not (tmp_path / "out" / LOCK).exists()
    assert execute(OneShard(), tmp_path / "out").ran


TURNS = """
import sys, time
from pathlib import Path
from types import MappingProxyType
from stages.artifacts.lock import lock_output
from stages.errors import ArtifactError
out, turns = Path(sys.argv[1]), 0
while turns < 300:
    try:
        with lock_output(out):
            (out / "inside").mkdir()  # fails where another is inside
            (out / "inside").rmdir()
        turns += 1
    except ArtifactError:
        time.sleep(0)
"""


def test_processes_that_take_turns_are_never_inside_together(tmp_path):
    """Each takes the lock's file away when it is done, while the others open it."""
    command = [sys.executable, "-c", TURNS, str(tmp_path)]
    others = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    assert [(other.communicate()[1], other.returncode) for other in others] == [("", 0)] * 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_with_what_to_do(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)  # no file system here lacks locks
    message = rf"out: its file system refuses locks \({re.escape(os.strerror(number))}\); .* another file system"
    with pytest.raises(ArtifactError, match=message), lock_output(tmp_path / "out"):
        pass


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArtifactError, match="out: a file, not a folder; name another with --out"):
        execute(OneShard(), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "mine"
