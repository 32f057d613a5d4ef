"""Rollouts of a few problems over the rounds: what the policy answered to one question as it was trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.artifacts.columns import ROLLOUTS
from stages.artifacts.overlay import text_html
from stages.artifacts.problems import Problem
from stages.chain import ROLLOUT, round_folder
from stages.core.selection import is_correct
from stages.pages.chart import number, table
from stages.pages.pairs import Key, read_problems, read_rows
from stages.pages.room import Room, problem_html
from stages.pages.state import RunState, Source, where

COURSES = ("wrong, then right", "right, then wrong", "never right")
OF_EACH = 2
"""Problems of each course that are shown (our choice)."""
MOST_ROUNDS = 8
"""Rounds of one problem that are shown (our choice); of more, evenly many, the first and the last among them."""
SHARE = 4
"""The part takes one in so many of the bytes that are left, at most: the gallery has the rest."""
FIRST = 0
"""The sample that stands for a problem's round."""
RULE = (
    "The first sample of each round. Of the problems that two rounds or more rolled out, these are by id the first "
    f"{OF_EACH} that are wrong in the first of the rounds and right in the last, the first {OF_EACH} that are right "
    f"and then wrong, and the first {OF_EACH} that are never right. Of more than {MOST_ROUNDS} rounds evenly many are "
    "shown."
)


class Scored(NamedTuple):
    """How a response was scored."""

    reward: float | None
    outcome: str
    """`right`, `wrong` or `not scored`."""


class Chosen(NamedTuple):
    """A problem that is shown."""

    run: int
    title: str
    problem: Problem | None
    """None where its file is gone, or another one than the rollouts were made from."""
    responses: Sequence[Sequence[str]]
    """Round, reward, outcome and text of each."""


def rollouts_part(sources: Sequence[Source], room: Room) -> str:
    """A section of at most a share of the room; nothing where no problem is chosen, as in a run of one round."""
    of_each = {(source.name, source.variant): run for run, source in reversed([*enumerate(sources)])}
    chosen = [one for run in sorted(of_each.values()) for one in _chosen(run, sources[run].state, where(sources, run))]
    if not chosen:
        return ""
    gone = dict.fromkeys(sources[one.run].state.folder for one in chosen if one.problem is None)
    spare = room.left - room.left // SHARE
    one_seed = len(of_each) < len(sources)
    room.left -= len("".join(_frame(len(chosen), len(chosen), [*gone], one_seed)).encode())
    articles = [room.take(sources[one.run].name, one.problem, _article(one), spare) for one in chosen]
    begin, end = _frame(articles.count(None), len(chosen), [*gone], one_seed)
    return f"{begin}{''.join(article for article in articles if article is not None)}{end}"


def _frame(left_out: int, found: int, gone: Sequence[Path], one_seed: bool) -> tuple[str, str]:
    """What stands before the problems and behind them; of the runs in `gone` their file is not to be had."""
    seeds = " Each variant is shown by its first run." if one_seed else ""
    left = f" {left_out} of {found} are left out: the file has no room for them." if left_out else ""
    notes = [f"{run}: without questions and pictures, since its problems are not where they were" for run in gone]
    return (
        f"<section id='rollouts'><h2>Rollouts of chosen problems over the rounds</h2><p>{RULE}{seeds}{left}</p>"
        f"{''.join(f'<p>{text_html(note)}</p>' for note in notes)}",
        "</section>",
    )


def _article(one: Chosen) -> str:
    responses = table(("round", "reward", "outcome", "response"), one.responses, "By round")
    return f"<article class='course'><h3>{text_html(one.title)}</h3>{problem_html(one.problem)}{responses}</article>\n"


def _chosen(run: int, state: RunState, begins: str) -> list[Chosen]:
    """Of one run."""
    samples = _first_samples(state)
    titles = {problem_id: begins + title for problem_id, title in _titles(samples).items()}
    if not titles:
        return []
    rounds = {name: _few([*samples[name]]) for name in titles}
    texts, problems = _texts(state, rounds), _problems(state, rounds)

    def cells(name: str, n: int) -> list[str]:
        scored = samples[name][n]
        reward = "none" if scored.reward is None else number(scored.reward)
        return [str(n), reward, scored.outcome, texts[name, n]]

    return [
        Chosen(run, title, problems.get(name), [cells(name, n) for n in rounds[name]]) for name, title in titles.items()
    ]


def _first_samples(state: RunState) -> Mapping[str, dict[int, Scored]]:
    """Of every complete rollout, by problem and round."""
    found: dict[str, dict[int, Scored]] = defaultdict(dict)
    for n in range(1, state.rounds + 1):
        folder = state.with_rows(n, ROLLOUT, ROLLOUTS)
        if folder is None:
            continue
        threshold = state.steps[f"round-{n}/{ROLLOUT}"]["recipe"]["reward"]["threshold"]
        for row in read_rows(folder, ROLLOUTS, ("problem_id", "sample", "reward")):
            if row["sample"] == FIRST:
                found[row["problem_id"]][n] = _scored(row["reward"], threshold)
    return found


def _scored(reward: float | None, threshold: float) -> Scored:
    if reward is None:
        return Scored(None, "not scored")
    return Scored(reward, "right" if is_correct(reward, threshold) else "wrong")


def _titles(samples: Mapping[str, Mapping[int, Scored]]) -> dict[str, str]:
    """Of the problems that are shown, by id."""
    by_course: dict[str, list[str]] = defaultdict(list)
    for problem_id in sorted(samples):
        by_course[_course([scored.outcome for scored in samples[problem_id].values()])].append(problem_id)
    return {
        problem_id: f"{course}, {place} of {len(by_course[course])}: {problem_id}"
        for course in COURSES
        for place, problem_id in enumerate(by_course[course][:OF_EACH], 1)
    }


def _course(outcomes: Sequence[str]) -> str:
    if len(outcomes) < 2:
        return "rolled out once"
    return "never right" if set(outcomes) == {"wrong"} else f"{outcomes[0]}, then {outcomes[-1]}"


def _few(rounds: Sequence[int]) -> list[int]:
    return [rounds[round(place)] for place in np.linspace(0, len(rounds) - 1, min(len(rounds), MOST_ROUNDS))]


def _texts(state: RunState, rounds: Mapping[str, Sequence[int]]) -> dict[tuple[str, int], str]:
    """The first samples of these rounds, by problem and round."""
    wanted: dict[int, set[Key]] = defaultdict(set)
    for problem_id, numbers in rounds.items():
        for n in numbers:
            wanted[n].add((problem_id, FIRST))
    columns = ("problem_id", "sample", "text")
    return {
        (row["problem_id"], n): row["text"]
        for n, keys in wanted.items()
        for row in read_rows(round_folder(state.folder, n) / ROLLOUT, ROLLOUTS, columns, keys)
    }


def _problems(state: RunState, rounds: Mapping[str, Sequence[int]]) -> Mapping[str, Problem]:
    """As the last of these rounds knew them; none where they are gone."""
    last = max(n for numbers in rounds.values() for n in numbers)
    return read_problems(state.steps[f"round-{last}/{ROLLOUT}"], set(rounds)) or {}
