"""How far the gradients of different problems agree: the plain algorithm's beside that of the marked pairs.

    python tests/bench/gradient_noise.py --recipe worded_digits --groups DIR --policy DIR --problems FILE

Reads the output of `df build-masks`, of one round, and computes the gradient of each problem at the policy's weights.
From their inner products it takes the squared norm of the true gradient, |G|^2, and the trace of the covariance of one
problem's, tr S, both without bias, and from these what McCandlish et al. 2018 (arXiv 1812.06162, eq. 2.8) call the
simple noise scale, tr S / |G|^2: the number of problems in a batch at which noise and signal are equally large. The
cosine's 90% interval leaves one problem in five out, at random, a hundred times. Prints a table.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from stages.artifacts.plan import Plan
from stages.artifacts.step import Step
from stages.engines.loading import open_model
from stages.recipe import load_recipe
from stages.s5_train_policy import TrainPolicy
from stages.training.groups import rows_to_work_on
from stages.training.losses import PolicyObjective
from stages.training.trainer import Trainer

SIDES = {
    "every token of every rollout": ["train.gate=none"],
    "marked tokens of errors and repairs": ["train.group=pairs"],
    "both, pairs weighed evenly": ["train.group=all", "train.evenness=1"],
}
BATCH = 32
RESAMPLES, KEPT = 100, 0.8
UNCLIPPED = 1e9
STANDSTILL = 1e-30
"""A learning rate at which float32 weights stay what they are."""


class Noise(NamedTuple):
    """Of the gradients of single problems."""

    signal: float
    """|G|^2."""
    noise: float
    """tr S."""

    @property
    def scale(self) -> float:
        return self.noise / self.signal

    def cosine(self, problems: int) -> float:
        """Expected between the gradients of two batches of so many problems, as the ratio of the expectations."""
        return self.signal / (self.signal + self.noise / problems)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", required=True)
    for name in ("groups", "policy", "problems"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["problems", "noise scale", f"cosine of two batches of {BATCH}", "90% interval"]
    table = Table("gradient of", *columns, title=str(options.groups))
    for side, settings in SIDES.items():
        products_PP = inner_products(options.recipe, settings, options.groups, options.policy, options.problems)
        noise, (low, high) = noise_of(products_PP), interval(products_PP)
        cells = (len(products_PP), f"{noise.scale:.0f}", f"{noise.cosine(BATCH):.2f}", f"{low:.2f} to {high:.2f}")
        table.add_row(side, *map(str, cells))
    Console(width=120).print(table)


def inner_products(
    recipe: str, settings: Sequence[str], groups: Path, policy: Path, problems: Path
) -> NDArray[np.float64]:
    """Of the gradients of every two problems that are trained on, (P, P)."""
    fixed = ["problems_per_step=1", f"optimizer.max_grad_norm={UNCLIPPED}", f"optimizer.learning_rate={STANDSTILL}"]
    used = load_recipe(recipe, [*settings, *(f"train.{assignment}" for assignment in fixed)])
    gradients_PN = torch.stack(list(gradients(TrainPolicy(used, groups, problems, policy))))
    return (gradients_PN @ gradients_PN.T).double().numpy()


def gradients(stage: TrainPolicy) -> Iterator[Tensor]:
    """Each problem's, over all weights, (N,)."""
    recipe = stage.recipe
    vlm = open_model(stage.policy, recipe, master_weights=True)
    trainer = Trainer(
        vlm, recipe.train.optimizer, temperature=recipe.rollout.temperature, machine=recipe.trainer, seed=0
    )
    objective = PolicyObjective(recipe.train.objective, recipe.rollout)
    with tempfile.TemporaryDirectory() as folder:
        source = stage.source(vlm, Step.open(Path(folder) / "step", Plan("gradient_noise", {}, 0, {})))
        for rows in map(source.training_rows, source.batches()):
            work, totals = rows_to_work_on(rows, recipe.train.objective)
            if work:
                trainer.step(work, objective, totals)
            else:  # all of its rewards are the same
                vlm.model.zero_grad()
            parameters = vlm.model.parameters()
            yield torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def noise_of(products_PP: NDArray[np.float64]) -> Noise:
    """From inner products of different problems and of each with itself."""
    count = len(products_PP)
    own = float(np.trace(products_PP))
    signal = (float(products_PP.sum()) - own) / (count * (count - 1))
    return Noise(signal, own / count - signal)


def interval(products_PP: NDArray[np.float64]) -> tuple[float, float]:
    """Of the cosine of two batches, 5% to 95%, over subsets of the problems."""
    rng, count = np.random.default_rng(0), len(products_PP)
    chosen = (rng.choice(count, int(KEPT * count), replace=False) for _ in range(RESAMPLES))
    low, high = np.percentile([noise_of(products_PP[np.ix_(kept, kept)]).cosine(BATCH) for kept in chosen], [5, 95])
    return float(low), float(high)


if __name__ == "__main__":
    main()
