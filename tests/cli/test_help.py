"""`df --help`: the pipeline in order, at once, without the libraries that take seconds to import."""

import json
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from df_cli.examples import EXAMPLES
from df_cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PIPELINE = [
    "sft-repair",
    "rl-repair",
    "audit-sample",
    "audit-agreement",
    "rollout",
    "build-masks",
    "train-policy",
    "evaluate",
    "summarize",
]
STEPS = ("runs/digits/round-1/train-policy",)
GROUPS = ("repair-set", "recipe")
HEAVY = {"torch", "transformers", "datasets", "pyarrow", "numpy", "PIL"}


def df(*arguments):
    """Run the command as its script does, in a process of its own; the heavy imports it made end its stderr."""
    code = (
        "import atexit, sys; from df_cli.main import main; "
        f"atexit.register(lambda: print(sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)); main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


@pytest.fixture(scope="module")
def helps():
    """What each command shows of itself, by its name, and the heavy imports of them all; one process asks for them."""
    code = f"""
import contextlib, io, json, sys
from df_cli.main import main
shown = {{}}
for command in json.load(sys.stdin):
    sys.argv = ["df", *command.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as written:
        try:
            main()
        except SystemExit as end:
            assert not end.code, command
    shown[command] = written.getvalue()
json.dump([shown, sorted({HEAVY} & sys.modules.keys())], sys.stdout)
"""
    asked = json.dumps([*COMMANDS, *EXAMPLES])
    done = subprocess.run(
        [sys.executable, "-c", code], input=asked, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_commands_stand_in_pipeline_order():
    help_text = df("--help").stdout
    listed = re.findall(r"^│ ([a-z]+(?:-[a-z]+)*) ", help_text, flags=re.MULTILINE)

    assert listed == [*COMMANDS]
    assert [name for name in listed if name in PIPELINE] == PIPELINE


def seconds_of_children():
    """Of computing: a busy machine's waiting is not ours."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_help_comes_at_once_and_without_torch():
    seconds = []
    for _ in range(3):
        started = seconds_of_children()
        done = df("--help")
        seconds.append(seconds_of_children() - started)

        assert done.returncode == 0
        assert done.stderr == "[]\n"
    assert min(seconds) < 1.0


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in GROUPS])
def test_each_command_has_help(command, helps):
    shown, heavy = helps

    assert f" {command} [OPTIONS]" in shown[command]
    assert " ".join(COMMANDS[command].__doc__.split()[:3]) in shown[command]
    assert heavy == []


@pytest.mark.parametrize("command", [name for name in EXAMPLES if " " in name])
def test_commands_of_a_group_have_help(command, helps):
    shown, heavy = helps

    assert f" {command} [OPTIONS]" in shown[command]
    assert heavy == []


def test_a_time_limit_is_offered_by_the_commands_that_can_stop_and_go_on():
    helps = {name: CliRunner().invoke(app, [*name.split(), "--help"]).stdout for name in EXAMPLES}

    stages = {"sft-repair", "rl-repair", "rollout", "build-masks", "train-policy", "evaluate"}
    assert {name for name in EXAMPLES if "--stop-after" in helps[name]} == stages | {
        "repair-set sheet",
        "loop",
        "ablate",
    }


def test_every_command_has_examples():
    listed = [name for name in COMMANDS if name not in GROUPS]
    listed += [f"{name} {part.name}" for name in GROUPS for part in COMMANDS[name].registered_commands]
    assert sorted(EXAMPLES) == sorted(listed)


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_end_the_help_and_are_command_lines(command):
    shown = " ".join(CliRunner().invoke(app, [*command.split(), "--help"]).stdout.split())
    for example in EXAMPLES[command]:
        assert example in shown
        assert example.startswith(f"df {command} ") or example == f"df {command}"
        parsed = typer.main.get_command(app)
        for word in command.split():
            parsed = parsed.commands[word]
        context = parsed.make_context(command, shlex.split(example)[1 + len(command.split()) :])
        assert context.params.get("recipe") in (None, "digits", "my.yaml", "qwen2.5-vl-7b-gspo", *STEPS)


def test_no_arguments_show_the_commands():
    shown = df().stdout

    assert all(command in shown for command in COMMANDS)


def test_usage_errors_exit_with_2():
    cases = {
        ("nonsense",): "No such command 'nonsense'",
        ("rollout",): "Missing option",
        ("rollout", "--problms", "x"): "No such option: --problms",
        ("rollout", "--seed", "-1"): "Invalid value for '--seed'",
    }
    for arguments, message in cases.items():
        done = df(*arguments)
        assert done.returncode == 2, arguments
        assert message in done.stderr
