"""What `samples` say of a repair model: its repairs of held-out errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stages.core.selection import is_correct
from stages.measures.accuracy import Measure, accuracy_at, mean_over_problems


def summarize_samples(section: str, rows: Iterable[Mapping[str, Any]], threshold: float) -> list[Measure]:
    """Acc@1, Acc@2, both as the auditor sees them, and mean edit cost of held-out repairs; unscored attempts are left
    out."""
    measures = measure_errors(rows, threshold)
    return [mean_over_problems(section, name, list(by_error.values())) for name, by_error in measures.items()]


def measure_errors(rows: Iterable[Mapping[str, Any]], threshold: float) -> dict[str, dict[str, float]]:
    """The same measures of each held-out error, by its problem; Acc@2 where two attempts were scored.

    Where an auditor looked, Acc@k also with the repairs that it flagged counted wrong.
    """
    correct: dict[str, list[bool]] = defaultdict(list)
    honest: dict[str, list[bool]] = defaultdict(list)
    costs: dict[str, list[float]] = defaultdict(list)
    looked = False
    for row in rows:
        if row["reward"] is not None:
            right = is_correct(row["reward"], threshold)
            correct[row["problem_id"]].append(right)
            costs[row["problem_id"]].append(row["cost"])
            flagged = row.get("flagged")
            looked = looked or flagged is not None
            honest[row["problem_id"]].append(right and flagged is not True)
    audited = {f"Acc@{k}, flagged counted wrong": _accuracy_at(honest, k) for k in (1, 2)} if looked else {}
    return {
        **{f"Acc@{k}": _accuracy_at(correct, k) for k in (1, 2)},
        **audited,
        "edit cost": {problem: sum(values) / len(values) for problem, values in costs.items()},
    }


def _accuracy_at(correct: Mapping[str, Sequence[bool]], k: int) -> dict[str, float]:
    enough = {problem: attempts for problem, attempts in correct.items() if len(attempts) >= k}
    return dict(zip(enough, accuracy_at(list(enough.values()), k), strict=True))
