"""The page that shows the method runs, and its step does what it is for."""

import pytest
import torch

from data.digits import one_round
from stages.model.batches import encode_prompt
from stages.model.layout import Reading
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt


@pytest.fixture
def seen(monkeypatch):
    """The policy before and after the step, and what it was trained on."""
    found = {}
    own = one_round.step

    def spy(policy, trajectories, learning_rate):
        found["policy"], found["trajectories"] = policy, trajectories
        found["before"] = logprobs(policy, trajectories)
        return own(policy, trajectories, learning_rate)

    monkeypatch.setattr(one_round, "step", spy)
    return found


@torch.no_grad()
def logprobs(policy, trajectories):
    style = one_round.RECIPE.prompt
    prompts = {
        t.problem.problem_id: encode_prompt(policy, policy_prompt(policy.processor, style, t.problem))
        for t in trajectories
    }
    readings = [Reading(prompts[t.problem.problem_id], t.ids) for t in trajectories]
    return LogprobReader(policy).read(readings, temperature=0.7).logprobs_BT


def test_the_step_pushes_the_marked_tokens_of_errors_down_and_those_of_repairs_up(seen):
    told = one_round.main(problems=8)
    trajectories = seen["trajectories"]
    assert told["pairs"] == len(trajectories) / 2 >= 3
    moved = logprobs(seen["policy"], trajectories) - seen["before"]
    for side, sign in ((0, -1), (1, 1)):
        marked = torch.cat([
            row[: len(t.ids)][torch.tensor(t.mask_T)]
            for row, t in zip(moved[side::2], trajectories[side::2], strict=True)
        ])  # fmt: skip
        assert sign * marked.mean() > 0.01
    assert {t.reward for t in trajectories[0::2]} == {0.0}
    assert {t.reward for t in trajectories[1::2]} == {1.0}
    # Ratios are 1, so the loss is the mean advantage of the marked tokens: each row's over its own tokens.
    assert 0 < told["tokens marked"] < 0.3
