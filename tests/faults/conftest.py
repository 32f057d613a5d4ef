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


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> dict[str, Reference]:
    """The stages, each on what the ones before it wrote."""
    folder = tmp_path_factory.mktemp("faults")
    problems, pairs = folder / "problems.parquet", folder / "repair_set.parquet"
    pq.write_table(pq.read_table(digits / "problems_train.parquet").slice(0, 12), problems)
    pq.write_table(pq.read_table(digits / "repair_set.parquet").slice(0, 30), pairs)
    base, recipe = digits / "base", ["--recipe", "digits"]
    recipe += [word for setting in SETTINGS for word in ("--set", setting)]
    inputs = {
        "sft-repair": {"repair-set": pairs, "model": base, "save-every": 2},
        "rl-repair": {"problems": problems, "policy": base, "repair-model": folder / "sft-repair", "repair-set": pairs},
        "rollout": {"problems": problems, "policy": base},
        "build-masks": {
            "rollouts": folder / "rollout", "problems": problems, "repair-model": folder / "rl-repair", "policy": base,
        },
        "train-policy": {"groups": folder / "build-masks", "problems": problems, "policy": base, "save-every": 2},
        "repair-set sheet": {"problems": problems, "policy": base, "count": 10},
        "evaluate": {"problems": problems, "model": base},
    }  # fmt: skip
    done = {}
    for stage, options in inputs.items():
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        command, out = Command([*stage.split(), *words, *recipe]), folder / stage.replace(" ", "-")
        started = time.monotonic()
        trace = command.finish(out)
        done[stage] = Reference(command, out, trace, time.monotonic() - started)
    return done
