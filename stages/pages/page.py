"""`df report`: runs, studies and evaluations as one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from stages.artifacts.overlay import policy_html, text_html
from stages.errors import DataError
from stages.pages.evaluations_part import evaluations_part
from stages.pages.gallery import gallery
from stages.pages.rollouts_part import rollouts_part
from stages.pages.room import Room
from stages.pages.run_part import RunResult, runs_part
from stages.pages.state import Source, read_state
from stages.pages.study_part import is_study, read_study, study_part
from stages.run_folder import folder_names
from stages.summary import is_evaluation

MEGABYTE = 10**6


def report_page(folders: Sequence[Path], size: int) -> str:
    """The page of these runs, studies and evaluations; rollouts and gallery take what is left of `size` bytes of UTF-8.

    Raises:
        DataError: a folder is none of these, or a file in it cannot be read.
    """
    names = folder_names(folders)
    runs, studies, evaluations = [], [], {}
    for name, folder in zip(names, folders, strict=True):
        if is_evaluation(folder):
            evaluations[name] = folder
            continue
        state = read_state(folder)
        if state is not None:
            runs.append(RunResult(name, state))
        if is_study(folder):
            studies.append(read_study(name, folder))
        elif state is None:
            raise DataError(
                f"{folder}: no run of make all, no study of df ablate and no evaluation of df evaluate in it; give the "
                "folder of one"
            )
    head, foot = (
        _head(f"Difference feedback: {', '.join(names)}"),
        f"<script>{_file('page.js')}</script></body></html>\n",
    )
    body = (runs_part(runs) if runs else "") + "".join(map(study_part, studies))
    body += evaluations_part(evaluations) if evaluations else ""
    room = Room(size - len((head + body + foot).encode()))
    sources = [Source(run.state, run.name) for run in runs]
    sources += [arm.source for study in studies for arm in study.arms]
    articles = rollouts_part(sources, room) + gallery(sources, room)
    return head + body + articles + room.definitions + foot


def _head(title: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{policy_html(_file("page.js"))}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text_html(title)}</title><style>{_file('page.css')}</style>"
        "<noscript><style>[data-axis][hidden] { display: block !important; }</style></noscript></head><body>"
        f"<h1>{text_html(title)}</h1>\n"
    )


def _file(name: str) -> str:
    return resources.files("stages.pages").joinpath(name).read_text(encoding="utf-8")
