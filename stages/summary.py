"""What a run of the pipeline came to: every step's outputs -> summary; evaluations compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.artifacts.columns import SAMPLES, SCORES, SUMMARY
from stages.artifacts.ledger import EVALUATION, training_cost
from stages.artifacts.manifests import MANIFEST, read_json, read_manifest, read_plan
from stages.artifacts.plan import differences
from stages.artifacts.rows import ScoreRow
from stages.artifacts.store import iterate_rows, write_rows
from stages.chain import MASKS, RL, ROLLOUT, SFT, round_folder
from stages.errors import ArtifactError
from stages.measures.accuracy import Measure, share
from stages.measures.repairs import summarize_samples
from stages.measures.scores import summarize_by_kind, summarize_gains, summarize_gains_by_kind, summarize_scores
from stages.run_folder import SUMMARY_FILE, all_steps, folder_names, note_summary, scores_folder

RUN_GAIN = "gain, final over base"
"""Of a run's last policy; its section in the summary."""
BY_KIND = ", by kind"
"""Ends the name of a section that has a measure for each kind of problem."""
MOST_KINDS = 20
"""With more kinds of problems, accuracy by kind is left to each evaluation's own summary."""
MEASURED_WITH = {
    "model": ("dtype", "min_pixels", "max_pixels"),
    "prompt": ("instruction",),
    "reward": ("name", "judge", "threshold"),
    "rollout": ("temperature", "max_new_tokens"),
    "evaluate": ("draws",),
}
"""Fields of the recipe that an accuracy depends on."""
_SAMPLES_FILE = f"{SAMPLES.name}.parquet"


class Evaluation(NamedTuple):
    """A policy's scores."""

    folder: Path
    rows: list[ScoreRow]
    threshold: float
    """The least reward of a right answer."""


Pairs = Mapping[str, tuple[Evaluation, Evaluation]]
"""Two policies by the name of what the second gains over the first."""


class Comparison(NamedTuple):
    """Accuracies, a section a policy, and what is gained, a section a pair."""

    policies: list[Measure]
    gains: list[Measure]

    def measures(self) -> list[Measure]:
        """All of them, as a summary has them."""
        return [*self.policies, *self.gains]


def summarize_run(run: Path, rounds: int) -> list[Measure]:
    """Read the folders that `make all` or a loop writes, write `summary.parquet` beside them, return its rows.

    What it was made from is noted beside it, so that it is known to be up to date.

    Raises:
        ArtifactError: a step is not complete.
    """
    steps = all_steps(run, rounds)
    base, final = (read_evaluation(scores_folder(run, number)) for number in (0, rounds))
    measures = [
        *measure_repair_training(steps),
        *(measure for number in range(1, rounds + 1) for measure in measure_round(number, round_folder(run, number))),
        *_compared({"base policy": base, "final policy": final}, {RUN_GAIN: (base, final)}),
        *measure_costs(steps),
    ]
    write_rows(run / SUMMARY_FILE, SUMMARY, [measure._asdict() for measure in measures])
    note_summary(run, rounds)
    return measures


def compare_evaluations(folders: Sequence[Path]) -> list[Measure]:
    """Accuracies of the policies that were evaluated, and what the others gain over the first, overall and by kind.

    Raises:
        ArtifactError: one is not complete, or they were not evaluated alike.
    """
    policies = dict(zip(folder_names(folders), map(read_evaluation, folders), strict=True))
    return _compared(policies, over_first(policies))


def measure_repair_training(steps: Iterable[Path]) -> list[Measure]:
    """Of the steps among these that trained the repair model: its held-out repairs where there are some, the gates."""
    folders = {step.name: step for step in steps}
    found = []
    for place, section in ((SFT, "repair model after SFT"), (RL, "repair model after RL")):
        if place in folders and _SAMPLES_FILE in read_manifest(folders[place])["files"]:
            found += _held_out(section, folders[place])
    return found + (measure_gates(folders[RL]) if RL in folders else [])


def _held_out(section: str, folder: Path) -> list[Measure]:
    """Acc@k and edit cost of held-out repairs."""
    threshold = read_manifest(folder)["recipe"]["reward"]["threshold"]
    rows = list(iterate_rows(folder / _SAMPLES_FILE, SAMPLES))
    return summarize_samples(section, rows, threshold)


def measure_gates(folder: Path) -> list[Measure]:
    """Hit rates of C1 and of the auditor in repair RL: the auditor's over right repairs, overall and per category."""
    counts = Counter(read_manifest(folder)["counts"])
    audited, with_c1 = counts["repairs_audited"], counts["errors"] - counts["errors_without_c1"]
    section = "repair RL"
    measures = [
        share(section, "C1 hit rate (errors)", counts["errors_gated_by_c1"], with_c1),
        share(section, "audit hit rate", counts["repairs_flagged"], audited),
        share(section, "audit hit rate, C1 open", counts["repairs_c1_open_flagged"], counts["repairs_c1_open_audited"]),
    ]
    categories = sorted(name for name in counts if name.startswith("flagged_"))
    return measures + [
        share(section, f"audit hit rate, {name.removeprefix('flagged_')}", counts[name], audited) for name in categories
    ]


def measure_round(number: int, folder: Path) -> list[Measure]:
    """Shares of one round, its rollouts and masks complete."""
    section = f"round {number}"
    rollout, masks = read_manifest(folder / ROLLOUT), read_manifest(folder / MASKS)
    counts = Counter(masks["counts"])
    return [
        share(section, "correct rollouts", rollout["counts"]["correct"], rollout["rows_out"]),
        share(section, "p, rollouts that triggered a repair (eq. 29)", counts["repair_triggered"], rollout["rows_out"]),
        share(section, "errors with a selected repair", counts["errors_repaired"], counts["repair_triggered"]),
        share(section, "audit hit rate", counts["candidates_flagged"], counts["candidates_audited"]),
        share(section, "marked tokens", counts["tokens_marked"], counts["tokens_in_pairs"]),
    ]


def _compared(policies: Mapping[str, Evaluation], pairs: Pairs) -> list[Measure]:
    return [*compare(policies, pairs).measures(), *compare_by_kind(policies, pairs).measures()]


def is_evaluation(folder: Path) -> bool:
    """Whether `df evaluate` has written there, complete or not."""
    return (read_json(folder / MANIFEST) or read_plan(folder) or {}).get("step") == "evaluate"


def read_evaluation(folder: Path) -> Evaluation:
    """What a complete evaluation has found."""
    threshold = read_manifest(folder)["recipe"]["reward"]["threshold"]
    return Evaluation(folder, list(iterate_rows(folder, SCORES)), threshold)


def measure_scores(section: str, evaluation: Evaluation) -> list[Measure]:
    """Greedy, sampled and image-free accuracy over all problems, and Acc@k of the draws."""
    return summarize_scores(section, evaluation.rows, evaluation.threshold)


def measure_gains(section: str, before: Evaluation, after: Evaluation) -> list[Measure]:
    """Sampled and greedy accuracy of one policy over another's, paired by problem.

    Raises:
        ArtifactError: they were not evaluated alike.
    """
    check_alike(before.folder, after.folder)
    return summarize_gains(section, before.rows, after.rows, before.threshold)


def over_first(policies: Mapping[str, Evaluation]) -> Pairs:
    """Each of the others with the first."""
    (first, before), *others = policies.items()
    return {f"gain, {name} over {first}": (before, after) for name, after in others}


def compare(policies: Mapping[str, Evaluation], pairs: Pairs) -> Comparison:
    """What policies come to over all problems, and what is gained in each pair.

    Raises:
        ArtifactError: a pair was not evaluated alike.
    """
    return Comparison(
        [measure for name, policy in policies.items() for measure in measure_scores(name, policy)],
        [measure for name, pair in pairs.items() for measure in measure_gains(name, *pair)],
    )


def compare_by_kind(policies: Mapping[str, Evaluation], pairs: Pairs) -> Comparison:
    """Sampled and greedy accuracy by kind of problem; nothing where kinds are more than `MOST_KINDS`."""
    if len({row["kind"] for policy in policies.values() for row in policy.rows} - {None}) > MOST_KINDS:
        return Comparison([], [])
    return Comparison(
        [
            measure
            for name, policy in policies.items()
            for measure in summarize_by_kind(f"{name}{BY_KIND}", policy.rows, policy.threshold)
        ],
        [
            measure
            for name, (before, after) in pairs.items()
            for measure in summarize_gains_by_kind(f"{name}{BY_KIND}", before.rows, after.rows, before.threshold)
        ],
    )


def check_alike(base: Path, final: Path) -> None:
    """Refuse two evaluations that differ in more than the policy: ids of other problems may be the same.

    Raises:
        ArtifactError: one is not complete, or names what differs.
    """
    different = differences(*(_measured_with(read_manifest(folder)) for folder in (base, final)))
    if different:
        raise ArtifactError(
            f"{final}: evaluated with other {', '.join(different)} than {base}, so that a gain would not be the "
            "policy's; run df evaluate for both alike, with --overwrite"
        )


def _measured_with(manifest: Mapping[str, Any]) -> dict[str, Any]:
    recipe = {
        section: {name: manifest["recipe"].get(section, {}).get(name) for name in names}
        for section, names in MEASURED_WITH.items()
    }
    if recipe["reward"]["name"] != "judge":
        del recipe["reward"]["judge"]
    return {"recipe": recipe, "inputs": {name: of for name, of in manifest["inputs"].items() if name != "model"}}


def measure_costs(folders: Sequence[Path]) -> list[Measure]:
    """Device-seconds by stage, rounds added up (eq. 29); every evaluation is `evaluate`'s."""
    seconds: dict[str, float] = defaultdict(float)
    for folder in folders:
        manifest = read_manifest(folder)
        seconds[manifest["step"]] += training_cost(manifest)
        if EVALUATION in manifest["device_seconds"]:
            seconds[EVALUATION] += manifest["device_seconds"][EVALUATION]
    return [Measure("device-seconds", step, value) for step, value in seconds.items()]
