"""The stages as nobody interrupted them."""

import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.register_assert_rewrite("interrupted")

from interrupted import Command, Reference  # noqa: E402, after it

SETTINGS = [
    "repair_set.samples_per_problem=2",
    "sft.epochs=2",
    "sft.batch_size=8",
    "repair_rl.problems=12",
    "repair_rl.iterations=3",
    "repair_rl.errors_per_iteration=4",
    "repair_rl.errors_per_step=2",
    "repair_rl.repairs_per_error=2",
    "repair_rl.c1_tries=2",
    "rollout.samples_per_problem=4",
    "rollout.rows_per_shard=12",
    "rollout.max_new_tokens=48",
    "masks.candidates=2",
    "train.problems_per_step=2",
    "train.epochs=2",
    "evaluate.draws=2",
    "tracking.trackers=[jsonl]",
]


class References(dict[str, Reference]):
    """The stages, each made when it is first asked for, on what the ones before it wrote."""

    def __init__(self, folder: Path, digits: Path) -> None:
        self.folder = folder
        problems, pairs = folder / "problems.parquet", folder / "repair_set.parquet"
        pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 12), problems)
        pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 30), pairs)
        on = {"problems": problems, "policy": digits / "base"}
        # A word is the stage whose output is read.
        self.inputs: dict[str, dict[str, Path | str | int]] = {
            "sft-repair": {"repair-set": pairs, "model": digits / "base", "save-every": 2},
            "rl-repair": {**on, "repair-model": "sft-repair", "repair-set": pairs},
            "rollout": on,
            "build-masks": {**on, "rollouts": "rollout", "repair-model": "rl-repair"},
            "train-policy": {**on, "groups": "build-masks", "save-every": 2},
            "repair-set sheet": {**on, "count": 10},
            "evaluate": {"problems": problems, "model": digits / "base"},
        }

    def __missing__(self, stage: str) -> Reference:
        words = [*stage.split(), "--recipe", "digits", *(word for setting in SETTINGS for word in ("--set", setting))]
        for name, value in self.inputs[stage].items():
            words += [f"--{name}", str(self[value].out if isinstance(value, str) else value)]
        command, out = Command(words), self.folder / stage.replace(" ", "-")
        started = time.monotonic()
        trace = command.finish(out)
        self[stage] = Reference(command, out, trace, time.monotonic() - started)
        return self[stage]


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> References:
    return References(tmp_path_factory.mktemp("faults"), digits)
