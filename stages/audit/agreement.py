"""How far the auditor's verdicts and a person's labels agree.

Axis: D populations that the labels could come from. A table may hold numbers or arrays over D.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score

from stages.artifacts.rows import AgreementRow
from stages.audit.episodes import CLEAN
from stages.measures.accuracy import CONFIDENCE, RESAMPLES, share

Count = Any
"""A number, or an array over D."""

OVERALL = "overall"
LABELS, POPULATION = "labels", "population"
_NOTES = {
    "kappa": "verdicts and labels are all the same one, on which chance agrees as well",
    "false flag rate": "the labels flag every repair",
    "miss rate": "the labels flag no repair",
}
"""Why a measure is not defined."""
_JEFFREYS = 0.5


class Compared(NamedTuple):
    """One repair: `clean` or a category, by the auditor and by a person."""

    verdict: str
    label: str


class Table(NamedTuple):
    """Repairs by who flagged them."""

    both: Count
    auditor_alone: Count
    label_alone: Count
    neither: Count


@dataclass(frozen=True)
class Stratum:
    """Repairs of one verdict, some of them labelled."""

    flagged: bool
    """By the auditor."""
    population: int
    labelled: int
    flagged_by_label: int


def agreement_rows(compared: Sequence[Compared], populations: Mapping[str, int] | None = None) -> list[AgreementRow]:
    """Rows of `audit_agreement`: overall, then for each category that either side used.

    Agreement, Cohen's kappa, false flag rate (of repairs labelled clean, those that the auditor flagged) and miss rate
    (of repairs labelled flagged, those that it did not flag); for a category, `flagged` means for this one. Shares of
    labelled repairs have Wilson intervals, as if each were independent of the others.

    `populations` tells the size of each stratum of a sample stratified by verdict. Then come estimates for the
    population, and in each stratum the share that is labelled flagged, which needs no weights.
    """
    used = {name for pair in compared for name in pair}
    sections = [OVERALL, *sorted(used - {CLEAN})]
    rows = [row for section in sections for row in _of_labels(section, compared)]
    if populations is not None:
        by_section = {section: _strata(section, compared, populations) for section in sections}
        rows += [row for section, strata in by_section.items() for row in _of_population(section, strata)]
        rows += [_of_stratum(name, compared) for name in sorted(populations)]
    return rows


def kappa(table: Table) -> float | None:
    """Cohen's kappa; None where both sides use one class only, and chance agreement is 1."""
    both, auditor_alone, label_alone, neither = table
    if auditor_alone == label_alone == 0 and (both == 0 or neither == 0):
        return None
    return float(cohen_kappa_score([1, 1, 0, 0], [1, 0, 1, 0], sample_weight=list(table)))


def estimate(strata: Sequence[Stratum]) -> Table:
    """The population's table: every labelled repair stands for `population / labelled` of its stratum."""
    return _table(strata, [stratum.population * stratum.flagged_by_label / stratum.labelled for stratum in strata])


def possible_tables(strata: Sequence[Stratum], draws: int = RESAMPLES) -> Table:
    """Tables of D populations that these labels could come from, to read intervals off.

    In each stratum the share labelled flagged is drawn from its Jeffreys posterior, then the repairs that nobody
    labelled are drawn with that share. A bootstrap would not do: where none of 50 clean verdicts is labelled flagged
    it draws none ever, however large the stratum is; and a stratum labelled in full adds no uncertainty here.
    """
    rng = np.random.default_rng(0)
    flagged = []
    for stratum in strata:
        clean = stratum.labelled - stratum.flagged_by_label
        share_D = rng.beta(stratum.flagged_by_label + _JEFFREYS, clean + _JEFFREYS, draws)
        unseen_D = rng.binomial(stratum.population - stratum.labelled, share_D)
        flagged.append(stratum.flagged_by_label + unseen_D)
    return _table(strata, flagged)


def _of_labels(section: str, compared: Sequence[Compared]) -> list[AgreementRow]:
    counts = Counter((_flags(section, pair.verdict), _flags(section, pair.label)) for pair in compared)
    table = Table(counts[True, True], counts[True, False], counts[False, True], counts[False, False])
    n = len(compared)
    return [
        *(_row(section, LABELS, name.replace("_", " "), count, n=n) for name, count in table._asdict().items()),
        _share(section, "agreement", table.both + table.neither, n),
        _row(section, LABELS, "kappa", kappa(table), n=n, note=_NOTES["kappa"]),
        _share(section, "false flag rate", table.auditor_alone, table.auditor_alone + table.neither),
        _share(section, "miss rate", table.label_alone, table.label_alone + table.both),
    ]


def _of_population(section: str, strata: Sequence[Stratum]) -> list[AgreementRow]:
    table = estimate(strata)
    values = _measures(table) | {"kappa": kappa(table)}
    n = sum(stratum.labelled for stratum in strata)
    return [
        _row(section, POPULATION, name, values[name], *_interval(values[name], drawn_D), n=n, note=_NOTES.get(name))
        for name, drawn_D in _measures(possible_tables(strata)).items()
    ]


def _of_stratum(name: str, compared: Sequence[Compared]) -> AgreementRow:
    labels = [pair.label for pair in compared if pair.verdict == name]
    return _share(f"stratum {name}", "labelled flagged", sum(label != CLEAN for label in labels), len(labels))


def _strata(section: str, compared: Sequence[Compared], populations: Mapping[str, int]) -> list[Stratum]:
    return [
        Stratum(
            _flags(section, verdict),
            size,
            labelled=sum(pair.verdict == verdict for pair in compared),
            flagged_by_label=sum(pair.verdict == verdict and _flags(section, pair.label) for pair in compared),
        )
        for verdict, size in populations.items()
    ]


def _flags(section: str, name: str) -> bool:
    """Whether a verdict or label flags a repair, or flags it for this category."""
    return name != CLEAN if section == OVERALL else name == section


def _table(strata: Sequence[Stratum], flagged: Sequence[Count]) -> Table:
    """Of how many repairs of each stratum are labelled flagged, were all of them labelled."""
    clean = [stratum.population - count for stratum, count in zip(strata, flagged, strict=True)]
    by_auditor = [stratum.flagged for stratum in strata]

    def total(counts: Sequence[Count], wanted: bool) -> Count:
        return sum(count for count, is_flagged in zip(counts, by_auditor, strict=True) if is_flagged is wanted)

    return Table(total(flagged, True), total(clean, True), total(flagged, False), total(clean, False))


def _measures(table: Table) -> dict[str, Any]:
    """The four of them; NaN where one is not defined."""
    both, auditor_alone, label_alone, neither = (np.asarray(count, np.float64) for count in table)
    by_auditor, by_label = both + auditor_alone, both + label_alone
    not_by_auditor, not_by_label = label_alone + neither, auditor_alone + neither
    with np.errstate(invalid="ignore"):
        return {
            "agreement": (both + neither) / (by_label + not_by_label),
            "kappa": 2
            * (both * neither - auditor_alone * label_alone)
            / (by_auditor * not_by_label + by_label * not_by_auditor),
            "false flag rate": auditor_alone / not_by_label,
            "miss rate": label_alone / by_label,
        }


def _interval(value: float | None, drawn_D: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """Equal tails of the draws that define it; the value itself, at 0 or 1, always lies in it."""
    drawn = drawn_D[np.isfinite(drawn_D)]
    if value is None or np.isnan(value) or not len(drawn):
        return None, None
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(min(low, value)), float(max(high, value))


def _share(section: str, measure: str, hits: int, n: int) -> AgreementRow:
    found = share(section, measure, hits, n)
    return _row(section, LABELS, measure, found.value, found.low, found.high, n=n, note=_NOTES.get(measure))


def _row(
    section: str,
    estimate: str,
    measure: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    *,
    n: int,
    note: str | None = None,
) -> AgreementRow:
    """The note stays where there is no value."""
    if value is not None and np.isnan(value):
        value = None
    return {
        "section": section,
        "estimate": estimate,
        "measure": measure,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "note": note if value is None else None,
    }
