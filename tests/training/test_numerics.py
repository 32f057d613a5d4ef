"""In bfloat16 the first optimizer step sees the old log-probs of its own numerics: GSPO's bounds are 3e-4."""

from statistics import median

import pytest
import torch

from stages.artifacts.ledger import CostLedger
from stages.engines.loading import open_engine, recipe_sampling
from stages.engines.protocol import ScoreRequest
from stages.model.batches import encode_prompt
from stages.recipe import load_recipe
from stages.scoring.answering import Answerer
from stages.scoring.auditor import open_auditor
from stages.scoring.group_builder import GroupBuilder
from stages.scoring.repairs import Repairer
from stages.seeds import Purpose
from stages.training.groups import optimization_group
from stages.training.heldout import annotated_draft, with_end
from stages.training.losses import PolicyObjective
from stages.training.metrics import MetricsLog
from stages.training.repair_loop import RepairLoop
from stages.training.trainer import Trainer, TrainingRow

RECIPE = load_recipe(
    "digits",
    [
        "model.dtype=bfloat16",
        "engine.rows_per_batch=64",
        "audit.auditor=none",
        "masks.candidates=3",
        "train.objective.algorithm=gspo",
        "trainer.tokens_per_micro_batch=400",
        "repair_rl.objective.algorithm=gspo",
        "repair_rl.repairs_per_error=4",
        "repair_rl.c1=false",
    ],
)

GSPO_BOUND = 3e-4


class Recording:
    """A loss function that keeps log s_i, the mean log-ratio of each sequence, of the first step."""

    def __init__(self, loss_function):
        self.loss_function = loss_function
        self.has_kl = loss_function.has_kl
        self.log_s: list[float] = []

    def reading(self, row):
        return self.loss_function.reading(row)

    def __call__(self, rows, logprobs, reference_BT, totals):
        for row, new_T in zip(rows, logprobs.logprobs_BT.detach(), strict=True):
            self.log_s.append((new_T[: len(row.ids)] - torch.tensor(row.old_logprobs_T)).mean().item())
        return self.loss_function(rows, logprobs, reference_BT, totals)

    @property
    def drift(self):
        return sum(map(abs, self.log_s)) / len(self.log_s)


@pytest.fixture
def engine_of(base_dir):
    """A function: the base policy as a stage opens it."""
    return lambda **options: open_engine(base_dir, RECIPE, **options)


def test_build_masks_and_train_policy_agree(engine_of, repair_problems, math_reward, step):
    engine = engine_of(master_weights=True)
    policy = Answerer(engine, RECIPE.prompt, math_reward, CostLedger())
    repairer = Repairer(engine_of(), RECIPE.prompt, math_reward, CostLedger())
    problems = {problem.problem_id: problem for problem in repair_problems[:12]}
    builder = GroupBuilder(RECIPE, problems, repairer, policy, open_auditor(RECIPE, policy), step)
    rollouts = [
        {"problem_id": name, "sample": sample, "text": problem.extra[side], "finish_reason": "stop",
         "ids": with_end(engine.vlm, problem.extra[side]), "reward": reward}
        for name, problem in problems.items()
        for sample, (side, reward) in enumerate([("repair", 1.0), ("error", 0.0)])
    ]  # fmt: skip
    _, groups = builder.build(rollouts, recipe_sampling(RECIPE, Purpose.CANDIDATES, 0))
    by_problem = [[row for row in groups if row["problem_id"] == name] for name in problems]
    chosen = [t for rows in by_problem for t in optimization_group(rows, RECIPE.train, RECIPE.rollout)]
    assert len(chosen) >= 12

    def first_step(old_logprobs):
        own = engine_of(master_weights=True).vlm
        rows = [
            TrainingRow(
                encode_prompt(own, policy.prompt(problems[t.row["problem_id"]])),
                t.row["ids"], t.row["role"], t.advantage, t.gate_T, old_T,
            )
            for t, old_T in zip(chosen, old_logprobs, strict=True)
        ]  # fmt: skip
        loss_function = Recording(PolicyObjective(RECIPE.train.objective, RECIPE.rollout))
        trainer = Trainer(own, RECIPE.train.optimizer, temperature=RECIPE.rollout.temperature, machine=RECIPE.trainer)
        trainer.step(rows, loss_function)
        return loss_function

    recording = first_step([t.row["old_logprobs"] for t in chosen])
    assert len(recording.log_s) == len(chosen)
    assert recording.drift < GSPO_BOUND
    # Rows that are packed in other company may round otherwise; most do not.
    assert median(map(abs, recording.log_s)) < GSPO_BOUND / 10
    # What weights in bfloat16 would have given instead: how large rounding is differs between processors.
    requests = [ScoreRequest(policy.prompt(problems[t.row["problem_id"]]), t.row["ids"]) for t in chosen]
    other = first_step(engine_of().score(requests, temperature=RECIPE.rollout.temperature))
    assert other.drift > 3 * recording.drift


def test_repair_rl_s_first_step_agrees_with_itself(engine_of, repair_problems, math_reward, step):
    engine = engine_of(master_weights=True)
    policy = Answerer(engine_of(), RECIPE.prompt, math_reward, CostLedger())
    repairer = Repairer(engine, RECIPE.prompt, math_reward, CostLedger())
    trainer = Trainer(
        engine.vlm, RECIPE.repair_rl.optimizer, temperature=RECIPE.rollout.temperature, machine=RECIPE.trainer
    )
    loop = RepairLoop(RECIPE, repairer, open_auditor(RECIPE, policy), step, trainer, MetricsLog())
    loop.objective = Recording(loop.objective)
    loop.iterate(0, [annotated_draft(engine.vlm, problem) for problem in repair_problems[:8]])
    metrics = {row["metric"]: row["value"] for row in loop.log.rows if row["step"] == 1}
    assert loop.trainer.steps_done == 1
    assert len(loop.objective.log_s) >= 8
    assert loop.objective.drift < GSPO_BOUND
    assert metrics["clip_fraction/repair"] < 0.1
    # Sampling rounds otherwise: token by token, and each row padded.
    assert 1e-5 < metrics["mismatch_mean"] < 0.01 < metrics["mismatch_max"] < 1
    assert 0.99 < metrics["effective_sample_size"] < 1
