"""Episodes of repair RL -> a stratified sample of audited repairs, as a sheet for a person to label."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from stages.artifacts.audit_labels import write_labels
from stages.artifacts.columns import AUDIT_SAMPLE, PROBLEMS
from stages.artifacts.overlay import PairView
from stages.artifacts.plan import Input, Plan
from stages.artifacts.problems import Problem, ProblemSet
from stages.artifacts.rows import AnyRow, AuditSampleRow
from stages.artifacts.step import Step
from stages.artifacts.word_difference import difference_text, marked_words
from stages.artifacts.writing import writing
from stages.audit.episodes import Audit, AuditedRepair, read_audit
from stages.audit.label_page import label_page
from stages.declared import episodes_read, table_input
from stages.engines.maker import warn_of_other_problems
from stages.errors import DataError
from stages.runtime import processes
from stages.seeds import Purpose, derive_seed
from stages.untrusted.printable import counted

TO_LABEL = "to_label"
"""Folder of what a labeller gets, which does not tell the verdicts."""
PAGE = "page.html"

logger = logging.getLogger(__name__)


class Drawn(NamedTuple):
    """A repair to label."""

    episode_id: str
    repair: AuditedRepair
    problem: Problem


@dataclass(frozen=True)
class AuditSample:
    """`df audit-sample`."""

    episodes: Path
    """Output of `df rl-repair`."""
    problems: Path
    count: int
    """Repairs wanted."""
    per_stratum: bool
    """Of each stratum, instead of in all."""
    seed: int
    file_format: Literal["csv", "parquet"] = "csv"

    @property
    def inputs(self) -> dict[str, Path | Input]:
        return {"episodes": episodes_read(self.episodes), "problems": self.problems}

    def plan(self) -> Plan:
        warn_of_other_problems(self.episodes, table_input(self.problems, PROBLEMS), remake="df rl-repair")
        ProblemSet(self.problems).many([drawn.problem_id for drawn in self.draw().values()])
        options = {"count": self.count, "per_stratum": self.per_stratum, "format": self.file_format}
        return Plan("audit-sample", options, self.seed, self.inputs)

    def run(self, step: Step) -> None:
        drawn = self.draw()
        problems = ProblemSet(self.problems).many([repair.problem_id for repair in drawn.values()])
        to_label = [Drawn(*pair, problem) for pair, problem in zip(drawn.items(), problems, strict=True)]
        rows: list[AuditSampleRow] = [
            {
                "episode_id": episode_id,
                "stratum": repair.verdict,
                "population": self._populations[repair.verdict],
                "drawn": self.sizes[repair.verdict],
            }
            for episode_id, repair in drawn.items()
        ]
        step.write_table(AUDIT_SAMPLE, rows)
        if processes.is_main():
            if len(rows) < self.count:
                told = "%s: only %d of the %d repairs that --count asks for were audited"
                logger.warning(told, self.episodes, len(rows), self.count)
            with writing(step.out / TO_LABEL):
                self._write_sheet(step.out / TO_LABEL, to_label)
        step.tally.rows_in = len(self._audit.repairs) + len(self._audit.left_out)
        step.tally.rows_out = len(rows)
        step.tally.dropped.update(self._audit.left_out.values())
        step.tally.dropped["not_drawn"] = len(self._audit.repairs) - len(rows)
        for stratum, size in sorted(self.sizes.items()):
            step.tally.counts[f"drawn_{stratum}"] = size
            step.tally.counts[f"population_{stratum}"] = self._populations[stratum]
        step.finish()

    def _write_sheet(self, folder: Path, to_label: Sequence[Drawn]) -> None:
        folder.mkdir(exist_ok=True)
        write_labels(folder / f"labels.{self.file_format}", [_sheet_row(drawn) for drawn in to_label])
        page = label_page({drawn.episode_id: _view(drawn) for drawn in to_label})
        (folder / PAGE).write_text(page, encoding="utf-8")

    @cached_property
    def _audit(self) -> Audit:
        return read_audit(self.episodes)

    @cached_property
    def _populations(self) -> Counter[str]:
        return Counter(repair.verdict for repair in self._audit.repairs.values())

    @cached_property
    def sizes(self) -> dict[str, int]:
        """How many are drawn of each stratum.

        Raises:
            DataError: nothing was audited, or fewer repairs are wanted than there are strata.
        """
        populations = self._populations
        if not populations:
            reasons = counted(Counter(self._audit.left_out.values()))
            raise DataError(f"{self.episodes}: no audited repair to draw ({reasons}); train the repair model longer")
        if self.per_stratum:
            return {stratum: min(self.count, size) for stratum, size in populations.items()}
        if self.count < len(populations):
            raise DataError(
                f"--count {self.count}: fewer than the {len(populations)} strata ({', '.join(sorted(populations))}); "
                f"take {len(populations)} or more"
            )
        return spread_evenly(populations, self.count)

    def draw(self) -> dict[str, AuditedRepair]:
        """The sample in an order that tells nothing of its strata: the first rows are a stratified sample too."""
        rng = np.random.default_rng(derive_seed(self.seed, Purpose.AUDIT_SAMPLE))
        repairs = self._audit.repairs
        drawn: list[str] = []
        for stratum, size in sorted(self.sizes.items()):
            members = [episode_id for episode_id, repair in repairs.items() if repair.verdict == stratum]
            drawn += [members[i] for i in rng.choice(len(members), size, replace=False)]
        return {drawn[i]: repairs[drawn[i]] for i in rng.permutation(len(drawn))}


def spread_evenly(populations: Mapping[str, int], count: int) -> dict[str, int]:
    """`count` in all, as many of each as there are of it or its fair share of what is left; the smallest go first."""
    sizes: dict[str, int] = {}
    for stratum in sorted(populations, key=lambda name: (populations[name], name)):
        left = count - sum(sizes.values())
        sizes[stratum] = min(populations[stratum], left // (len(populations) - len(sizes)))
    return sizes


def _sheet_row(drawn: Drawn) -> AnyRow:
    problem, repair = drawn.problem, drawn.repair
    return {
        "episode_id": drawn.episode_id,
        "label": None,
        "question": problem.question,
        "answer": problem.answer,
        "error": repair.error,
        "repair": repair.text,
        "difference": difference_text(repair.error, repair.text),
    }


def _view(drawn: Drawn) -> PairView:
    problem = drawn.problem
    frames = problem.video.decoded() if problem.video else []
    words = marked_words(drawn.repair.error, drawn.repair.text)
    return PairView(problem.question, problem.answer, problem.images, frames, *words)
