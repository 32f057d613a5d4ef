"""Episodes of repair RL and a person's labels -> how far the auditor and the labels agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from stages.artifacts.audit_labels import Label, read_labels
from stages.artifacts.columns import AUDIT_AGREEMENT, AUDIT_SAMPLE
from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.manifests import read_manifest
from stages.artifacts.plan import Input, Plan
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows
from stages.audit.agreement import Compared, agreement_rows
from stages.audit.episodes import LABELS, Audit, read_audit
from stages.declared import episodes_read
from stages.errors import DataError
from stages.untrusted.printable import counted

REMEDIES = {
    "unknown_episode": "no episode of this output; give the output of df rl-repair that was labelled with --episodes",
    "not_in_sample": "not drawn by --sample; leave that row out, or leave out --sample",
    "labelled_twice": "an earlier row labels the same episode; keep one of them",
    "unknown_label": f"not one of {', '.join(LABELS)}; write one of them, or nothing",
}
"""Why a row of the labels is refused, and what to do about it."""
PLACES = 10
"""Bad rows that an error names for each reason."""


class Labelling(NamedTuple):
    """A file of labels, its rows checked."""

    compared: list[Compared]
    empty: int
    """Rows that nobody filled in."""
    left_out: Counter[str]
    """Labels of repairs without a verdict, by the reason."""


@dataclass(frozen=True)
class AuditAgreement:
    """`df audit-agreement`: the checks are part of planning, so nothing is written where a label is refused."""

    episodes: Path
    """Output of `df rl-repair`."""
    labels: Path
    """CSV or Parquet."""
    sample: Path | None = None
    """Output of `df audit-sample` that the labels were made from."""

    @property
    def inputs(self) -> dict[str, Path | Input]:
        sample: dict[str, Path | Input] = {} if self.sample is None else {"sample": self.sample}
        return sample | {"episodes": episodes_read(self.episodes), "labels": self.labels}

    def plan(self) -> Plan:
        if not self.labelling.compared:
            raise DataError(
                f"{self.labels}: no label to compare ({self.labelling.empty} rows not filled in, "
                f"{counted(self.labelling.left_out)}); write {', '.join(LABELS)} into its column label"
            )
        self._populations()
        return Plan("audit-agreement", {}, 0, self.inputs)

    def run(self, step: Step) -> None:
        found, repairs = self.labelling, self._audit.repairs
        step.write_table(AUDIT_AGREEMENT, agreement_rows(found.compared, self._populations()))
        step.tally.rows_in = found.empty + sum(found.left_out.values()) + len(found.compared)
        step.tally.rows_out = len(found.compared)
        step.tally.dropped.update({"not_filled_in": found.empty} | found.left_out)
        step.tally.counts["audited_repairs"] = len(repairs)
        step.tally.counts["audited_repairs_without_label"] = len(repairs) - len(found.compared)
        step.finish()

    @cached_property
    def _audit(self) -> Audit:
        return read_audit(self.episodes)

    @cached_property
    def labelling(self) -> Labelling:
        """The labels beside the verdicts.

        Raises:
            DataError: names the rows that are no label of an episode, by reason.
        """
        labels, audit = read_labels(self.labels), self._audit
        drawn = None if self.sample is None else self._strata.keys()
        bad: dict[str, list[str]] = defaultdict(list)
        done: set[str] = set()
        for label in labels:
            reason = _obstacle(label, audit, drawn, done)
            if reason is not None:
                bad[reason].append(label.place if label.label in ("", *LABELS) else f"{label.place}: {label.label!r}")
            done.add(label.episode_id)
        if bad:
            raise DataError(f"{self.labels}: {_report(bad)}")
        given = [label for label in labels if label.label]
        return Labelling(
            [
                Compared(audit.repairs[label.episode_id].verdict, label.label)
                for label in given
                if label.episode_id in audit.repairs
            ],
            len(labels) - len(given),
            Counter(audit.left_out[label.episode_id] for label in given if label.episode_id in audit.left_out),
        )

    @cached_property
    def _strata(self) -> dict[str, tuple[str, int]]:
        """Stratum of each drawn episode, and how many repairs are in it."""
        assert self.sample is not None
        drawn_from = read_manifest(self.sample)["inputs"].get("episodes", {}).get("sha256")
        file = self.sample / f"{AUDIT_SAMPLE.name}.parquet"
        strata = {row["episode_id"]: (row["stratum"], row["population"]) for row in iterate_rows(file, AUDIT_SAMPLE)}
        if drawn_from != fingerprint(self.episodes, episodes_read(self.episodes).reads):
            raise DataError(
                f"{self.sample}: drawn from other episodes than {self.episodes}; give those with --episodes"
            )
        return strata

    def _populations(self) -> Mapping[str, int] | None:
        """Size of each stratum of the sample; None without one.

        Raises:
            DataError: nothing is labelled in one of them.
        """
        if self.sample is None:
            return None
        populations = dict(self._strata.values())
        without = sorted(populations.keys() - {pair.verdict for pair in self.labelling.compared})
        if without:
            raise DataError(
                f"{self.labels}: no label in {', '.join(without)}, of which {self.sample} has some: the population "
                "cannot be estimated; label more rows, or leave out --sample"
            )
        return populations


def _obstacle(label: Label, audit: Audit, drawn: Collection[str] | None, done: set[str]) -> str | None:
    """Why a row cannot be taken; `drawn` are the episodes of the sample, None without one."""
    if label.episode_id not in audit.repairs and label.episode_id not in audit.left_out:
        return "unknown_episode"
    if drawn is not None and label.episode_id not in drawn:
        return "not_in_sample"
    if label.episode_id in done:
        return "labelled_twice"
    return None if label.label in ("", *LABELS) else "unknown_label"


def _report(bad: Mapping[str, Sequence[str]]) -> str:
    """Bad rows by reason, with what to do about them."""
    lines = [f"{sum(map(len, bad.values()))} rows are refused"]
    for reason, places in bad.items():
        more = f"; and {len(places) - PLACES} more" if len(places) > PLACES else ""
        lines.append(f"  {len(places)} {reason}: {REMEDIES[reason]}: {'; '.join(places[:PLACES])}{more}")
    return "\n".join(lines)
