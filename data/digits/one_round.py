"""One round of Difference Feedback in plain calls, in the order of the paper: what `df rollout`, `df build-masks` and
`df train-policy` do, for one optimizer step.

    python data/digits/one_round.py

The base policy is its own repair model here: it has seen proofreading. A real run trains one first (`df sft-repair`,
`df rl-repair`). Axes: B sequences of the step, T tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import stages.model  # noqa: F401, before transformers  # isort: skip

import torch
from torch.nn.utils.rnn import pad_sequence

from stages.artifacts.problems import Problem, ProblemSet
from stages.core.advantages import group_advantages
from stages.core.alignment import difference_masks
from stages.core.objectives import policy_loss
from stages.core.selection import is_correct, select_repair
from stages.engines.protocol import Completion, Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt
from stages.model.layout import Reading
from stages.model.loading import VisionLanguageModel, load_model
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt, repair_prompt
from stages.recipe import load_recipe
from stages.reward.answers import score_answer

DIGITS = Path(__file__).parent
RECIPE = load_recipe("digits")
ROLLOUTS, REPAIRS = RECIPE.rollout.samples_per_problem, RECIPE.masks.candidates
SAMPLING = Sampling(RECIPE.rollout.max_new_tokens, RECIPE.rollout.temperature, seed=1)
THRESHOLD = RECIPE.reward.threshold


class Trajectory(NamedTuple):
    """An error or its repair: what is trained on."""

    problem: Problem
    ids: list[int]
    reward: float
    mask_T: Sequence[bool]
    """True at the tokens that differ (eq. 8): the error's are pushed down, the repair's up."""


def main(problems: int = 24, learning_rate: float = 1e-4) -> dict[str, float]:
    """One round on so many training problems; what came of it."""
    policy = load_model(DIGITS / "base")
    engine = TransformersEngine(policy, rows_per_batch=256)
    problem_set = ProblemSet(DIGITS / "problems_train.parquet")
    chosen = problem_set.many(problem_set.ids[:problems])

    # Eq. 11, 12: G rollouts of each problem; errors are those of reward below the threshold.
    asked = [policy_prompt(policy.processor, RECIPE.prompt, p) for p in chosen]
    rollouts = engine.generate([Request(prompt, ROLLOUTS) for prompt in asked], SAMPLING)
    errors = [
        (problem, rollout)
        for problem, group in zip(chosen, rollouts, strict=True)
        if any(is_correct(reward(policy, problem, r), THRESHOLD) for r in group)
        for rollout in group
        if not is_correct(reward(policy, problem, rollout), THRESHOLD)
    ]

    # Eq. 5: K repairs of each error, by a model that sees the problem, the error and the right answer.
    repair_asked = [
        repair_prompt(policy.processor, RECIPE.prompt, p, policy.without_end(e.ids), p.answer) for p, e in errors
    ]
    requests = [Request(prompt, REPAIRS, draft_ids=e.ids) for prompt, (_, e) in zip(repair_asked, errors, strict=True)]
    candidates = engine.generate(requests, SAMPLING)

    # Eq. 6-8: of the right repairs the one with the fewest edits; the difference marks both sides. (No auditor here.)
    trajectories = [
        side
        for (problem, error), group in zip(errors, candidates, strict=True)
        for side in pair(policy, problem, error, group)
    ]

    loss = step(policy, trajectories, learning_rate)
    tokens = sum(len(t.ids) for t in trajectories)
    return {
        "rollouts": float(problems * ROLLOUTS),
        "errors": float(len(errors)),
        "pairs": len(trajectories) / 2,
        "tokens marked": sum(sum(t.mask_T) for t in trajectories) / tokens,
        "loss": loss,
    }


def reward(policy: VisionLanguageModel, problem: Problem, response: Completion) -> float:
    """The task reward; an answer that cannot be scored counts as wrong on this page alone."""
    return score_answer(policy.decode(response.ids), problem.answer) or 0.0


def pair(
    policy: VisionLanguageModel, problem: Problem, error: Completion, candidates: Sequence[Completion]
) -> list[Trajectory]:
    """The error and its selected repair, or nothing."""
    rewards = [reward(policy, problem, candidate) for candidate in candidates]
    masks = [difference_masks(error.ids, candidate.ids) for candidate in candidates]
    best = select_repair(rewards, [m.cost for m in masks], [False] * len(masks), threshold=THRESHOLD).chosen
    if best is None:
        return []
    return [
        Trajectory(problem, error.ids, reward(policy, problem, error), masks[best].error_T.tolist()),
        Trajectory(problem, candidates[best].ids, rewards[best], masks[best].repair_T.tolist()),
    ]


def step(policy: VisionLanguageModel, trajectories: Sequence[Trajectory], learning_rate: float) -> float:
    """Eq. 16-23: advantages over each problem's errors and repairs, gated by the masks; one optimizer step."""
    readings, advantages = [], []
    for _, members in groupby(trajectories, key=lambda t: t.problem.problem_id):
        group = list(members)
        problem = group[0].problem
        prompt = encode_prompt(policy, policy_prompt(policy.processor, RECIPE.prompt, problem))
        readings += [Reading(prompt, t.ids) for t in group]
        advantages += group_advantages([t.reward for t in group]).tolist()
    # Old log-probs are the policy's own of every trajectory: a repair was sampled by another model, another prompt.
    read = LogprobReader(policy).read(readings, temperature=SAMPLING.temperature)
    result = policy_loss(
        "grpo",
        logprobs_BT=read.logprobs_BT,
        old_logprobs_BT=read.logprobs_BT.detach(),
        advantages_B=torch.tensor(advantages, device=policy.device),
        response_mask_BT=read.read_BT,
        gate_BT=pad_sequence([torch.tensor(t.mask_T).float() for t in trajectories], batch_first=True).to(
            policy.device
        ),
    )
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=learning_rate, weight_decay=0.0)
    result.loss.backward()
    optimizer.step()
    return result.loss.item()


if __name__ == "__main__":
    for name, value in main().items():
        print(f"{name:<14} {value:.4g}")
