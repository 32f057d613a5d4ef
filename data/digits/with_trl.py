"""TRL's GRPO on the digits: errors and their repairs share the places of their group, gated where the two differ.

    python -m data.digits.with_trl

The policy is its own repair model here, as in `one_round.py`, and takes one step.
"""

from __future__ import annotations

from data.digits.one_round import DIGITS, RECIPE, REPAIRS, ROLLOUTS, SAMPLING, reward  # before trl  # isort: skip

from functools import partial
from typing import Any

from datasets import Dataset
from trl import GRPOConfig

from stages.artifacts.problems import ProblemSet
from stages.core import difference_masks
from stages.engines.protocol import Request
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt
from stages.model.loading import VisionLanguageModel, load_model
from stages.model.prompts import policy_prompt, repair_prompt
from stages.plugins.trl import GatedGRPOTrainer
from stages.reward import score_answer

PROBLEMS = ProblemSet(DIGITS / "problems_train.parquet")


def gated(ids: list[int], repairs: list[list[int]]) -> list[tuple[list[int], Any]]:
    """An error and its nearest repair, each with its mask (eq. 7, 8); without a repair, ones."""
    if not repairs:
        return [(ids, [1.0] * len(ids))]
    masks, repair = min(((difference_masks(ids, r), r) for r in repairs), key=lambda found: found[0].cost)
    return [(ids, masks.error_T), (repair, masks.repair_T)]


def rollout(policy: VisionLanguageModel, _prompts: Any, trainer: GatedGRPOTrainer) -> dict[str, Any]:
    """A completion for each place of a group: errors beside their repairs first, then what has none."""
    engine, processor = TransformersEngine(policy, rows_per_batch=256), policy.processor
    problems = PROBLEMS.many([row["problem_id"] for row in trainer.rows])
    prompts = [policy_prompt(processor, RECIPE.prompt, p) for p in problems]
    drawn = [response for (response,) in engine.generate([Request(prompt) for prompt in prompts], SAMPLING)]
    errors = {n: policy.without_end(r.ids) for n, r in enumerate(drawn) if reward(policy, problems[n], r) == 0}
    shown = [repair_prompt(processor, RECIPE.prompt, problems[n], e, problems[n].answer) for n, e in errors.items()]
    repairs = dict(zip(errors, engine.generate([Request(prompt, REPAIRS) for prompt in shown], SAMPLING), strict=True))
    right = [[r.ids for r in repairs.get(n, ()) if reward(policy, p, r) == 1] for n, p in enumerate(problems)]

    members = [gated(response.ids, found) for response, found in zip(drawn, right, strict=True)]
    groups = [sorted(members[n : n + ROLLOUTS], key=len, reverse=True) for n in range(0, len(members), ROLLOUTS)]
    places = [place for group in groups for place in [side for member in group for side in member][:ROLLOUTS]]
    ids, gates = zip(*places, strict=True)
    prompt_ids = [encode_prompt(policy, prompt).ids for prompt in prompts]
    return {"prompt_ids": prompt_ids, "completion_ids": list(ids), "logprobs": None, "gate": list(gates)}


def make_trainer(policy: VisionLanguageModel, problems: int = 4) -> GatedGRPOTrainer:
    """TRL's trainer, whose step takes so many problems."""

    def correct(completion_ids: list[list[int]], answer: list[str], **_: Any) -> list[float | None]:
        return [score_answer(policy.decode(ids), right) for ids, right in zip(completion_ids, answer, strict=True)]

    rows = [
        p.as_row() | {"prompt": [{"role": "user", "content": p.question}], "images": list(p.images)}
        for p in PROBLEMS.many(PROBLEMS.ids[:problems])
    ]
    return GatedGRPOTrainer(
        model=policy.model,
        reward_funcs=correct,
        args=GRPOConfig(
            "runs/with_trl",
            loss_type="grpo",
            num_generations=ROLLOUTS,
            per_device_train_batch_size=problems * ROLLOUTS,
            temperature=SAMPLING.temperature,
            max_steps=1,
            bf16=False,
        ),
        train_dataset=Dataset.from_list(rows),
        rollout_func=partial(rollout, policy),
        gate_func=lambda rows, _ids: [row["gate"] for row in rows],
    )


if __name__ == "__main__":
    make_trainer(load_model(DIGITS / "base")).train()
