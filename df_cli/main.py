"""The `df` command: Difference Feedback's steps in pipeline order."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer._click.exceptions import ClickException
from typer.core import TyperGroup

from df_cli import recipe, repair_set
from df_cli.ablate import ablate
from df_cli.audit_agreement import audit_agreement
from df_cli.audit_sample import audit_sample
from df_cli.build_masks import build_masks
from df_cli.evaluate import evaluate
from df_cli.examples import epilog
from df_cli.import_problems import import_problems
from df_cli.loop import loop
from df_cli.merge_studies import merge_studies
from df_cli.report_page import report
from df_cli.rl_repair import rl_repair
from df_cli.rollout import rollout
from df_cli.sft_repair import sft_repair
from df_cli.summarize import summarize
from df_cli.system_df import meant_for_system, run_system_df
from df_cli.train_policy import train_policy
from stages.errors import DataError, DifferenceFeedbackError
from stages.runtime.interruption import Stopped
from stages.untrusted.printable import guard_logs, told, told_lines

COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "import-problems": import_problems,
    "repair-set": repair_set.app,
    "sft-repair": sft_repair,
    "rl-repair": rl_repair,
    "audit-sample": audit_sample,
    "audit-agreement": audit_agreement,
    "rollout": rollout,
    "build-masks": build_masks,
    "train-policy": train_policy,
    "evaluate": evaluate,
    "loop": loop,
    "summarize": summarize,
    "ablate": ablate,
    "merge-studies": merge_studies,
    "report": report,
    "recipe": recipe.app,
}
OPTIONS = ("--help", "--install-completion", "--show-completion")


class PipelineOrder(TyperGroup):
    """Lists the commands as they follow each other; groups would come last."""

    def list_commands(self, ctx: object) -> list[str]:  # noqa: ARG002
        return [*COMMANDS]

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _told_usage():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _told_usage():
            return super().invoke(ctx)


@contextmanager
def _told_usage() -> Iterator[None]:
    """What typer says of an argument repeats it, and a file name may hold anything."""
    try:
        yield
    except ClickException as error:
        error.message = told(error.message)
        raise


@contextmanager
def _told_names() -> Iterator[None]:
    """Wherever a name is looked at first that no file can have, it is the argument that is wrong."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        name = str(error.filename)
        raise DataError(
            f"{name[:60]}…: {len(name)} characters are too long for a file name; give a shorter one"
        ) from error


app = typer.Typer(
    cls=PipelineOrder,
    help="Reinforcement learning for vision-language models that learns where an answer went wrong.",
    epilog="Each command's --help ends with examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name, epilog=epilog(_name))
        for _part in _command.registered_commands:
            _part.epilog = epilog(f"{_name} {_part.name}")
    else:
        app.command(_name, epilog=epilog(_name))(_command)


def main() -> None:
    """Entry point of the `df` script."""
    arguments = sys.argv[1:]
    if meant_for_system(arguments, COMMANDS, OPTIONS):
        run_system_df(arguments)
    guard_logs()
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to save
    try:
        with _told_names():
            app()
    except DifferenceFeedbackError as error:
        sys.stderr.write(f"error: {told_lines(str(error))}\n")
        sys.exit(1)
    except Stopped as stop:
        from stages.runtime.processes import is_main

        if is_main():
            sys.stderr.write(f"{told_lines(str(stop))}\n")
        sys.exit(stop.exit_code)
    except Exception as error:  # noqa: BLE001, an error of ours: its traceback may repeat what others wrote
        sys.stderr.write(told("".join(traceback.format_exception(error))))
        sys.exit(1)
