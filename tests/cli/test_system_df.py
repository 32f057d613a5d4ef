"""`df` on a path or an option of its own is still the disk-free command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from df_cli.main import COMMANDS, OPTIONS
from df_cli.system_df import meant_for_system

ROOT = Path(__file__).parents[2]
OURS = f"#!{sys.executable}\nfrom df_cli.main import main\nmain()\n"
SYSTEM = '#!/bin/sh\nfor argument in "$@"; do echo "<$argument>"; done\nexit 7\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a file named like a command, and others."""
    for name in ("rollout", "backup.img"):
        (tmp_path / name).touch()
    for name in ("home", "repair-set"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", False),
        ("--help", False),
        ("--install-completion bash", False),
        ("--show-completion=bash", False),
        ("sft-repair --help", False),
        ("rollout", False),  # a command, though a file of that name lies here
        ("rollout --problems x", False),
        ("repair-set sheet --problems x", False),  # a folder of that name lies here
        ("nonsense", False),
        ("-h", True),
        ("-k /tmp", True),
        ("-hT", True),
        ("--human-readable", True),
        ("--output=source,avail", True),
        ("--version", True),
        ("--helpful", True),
        ("/", True),
        ("/tmp --help", True),
        (".", True),
        ("home", True),
        ("backup.img", True),
        ("./rollout", True),
        ("/no/such/mount", True),
    ],
)
@pytest.mark.usefixtures("folder")
def test_who_is_meant(line, expected):
    assert meant_for_system(line.split(), COMMANDS, OPTIONS) is expected


def script(folder, content):
    folder.mkdir(exist_ok=True)
    file = folder / "df"
    file.write_text(content)
    file.chmod(0o755)
    return folder


def df(*arguments, path, cwd):
    environment = os.environ | {"PATH": os.pathsep.join(map(str, path)), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        ["df", *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=20, check=False
    )


@pytest.fixture
def ours(tmp_path):
    return script(tmp_path / "venv", OURS)


@pytest.fixture
def system(tmp_path):
    return script(tmp_path / "bin", SYSTEM)


@pytest.mark.parametrize("arguments", [["-k", "/tmp"], ["-h"], [".", "a  b", "", "--help", "*", "$HOME"]])
def test_arguments_and_exit_code_pass_through(arguments, ours, system, folder):
    done = df(*arguments, path=[ours, "/no/such/folder", system], cwd=folder)

    assert done.stdout.splitlines() == [f"<{argument}>" for argument in arguments]
    assert (done.returncode, done.stderr) == (7, "")


def test_our_commands_do_not_pass_through(ours, system, folder):
    done = df("rollout", "--help", path=[ours, system], cwd=folder)

    assert done.returncode == 0
    assert "df rollout [OPTIONS]" in done.stdout


def test_a_link_to_ours_and_ours_twice_on_path_are_passed_over(ours, system, folder):
    (folder / "links").mkdir()
    (folder / "links" / "df").symlink_to(ours / "df")

    assert df("-h", path=[folder / "links", ours, system, ours], cwd=folder).stdout == "<-h>\n"


def test_two_installs_do_not_call_each_other_for_ever(ours, system, folder):
    other = script(folder / "other", OURS)

    assert df("-h", path=[ours, other, system], cwd=folder).stdout == "<-h>\n"
    assert df("-h", path=[ours, other, ours], cwd=folder).returncode == 127


WRAPPER = f'#!/bin/sh\nexec {sys.executable} -m df_cli "$@"\n'


def module(*arguments, path, cwd):
    """`python -m df_cli`, as `df` does it."""
    environment = os.environ | {"PATH": os.pathsep.join(map(str, path)), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "df_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=20, check=False)


@pytest.mark.parametrize("call", [df, module])
def test_a_script_that_runs_the_module_reaches_the_system_and_ends_without_one(call, ours, system, folder):
    wrapper = script(folder / "wrapper", WRAPPER)

    assert call("-h", ".", path=[wrapper, ours, system], cwd=folder).stdout == "<-h>\n<.>\n"
    assert call("-h", ".", path=[wrapper, system], cwd=folder).returncode == 7
    for path in ([wrapper], [wrapper, ours], [ours, wrapper]):
        assert call("-h", ".", path=path, cwd=folder).returncode == 127


def test_no_other_df_is_127(ours, folder):
    done = df("-h", path=[ours], cwd=folder)

    assert done.returncode == 127
    assert done.stderr == "df: no disk-free command on PATH; the commands of Difference Feedback: df --help\n"
