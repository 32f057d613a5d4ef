"""Eq. 6 and 7 on the trained base policy: which repair an error gets, and what its group is then."""

from itertools import pairwise

import pytest

from stages.artifacts.ledger import CostLedger
from stages.audit.opening import open_auditor
from stages.core.alignment import difference_masks
from stages.engines.protocol import Sampling, ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Repairer
from stages.s4_build_masks.group_builder import GroupBuilder
from stages.training.heldout import with_end


@pytest.fixture
def build(base_vlm, repair_problems, math_reward, step):
    """A function: rows of repairs and of groups for eight problems with one right and one wrong rollout each."""
    chosen = repair_problems[:8]
    rollouts = [
        {"problem_id": problem.problem_id, "sample": sample, "text": text, "ids": with_end(base_vlm, text),
         "reward": reward, "finish_reason": "stop", "sampler_logprobs": []}
        for problem in chosen
        for sample, (text, reward) in enumerate([(problem.extra["repair"], 1.0), (problem.extra["error"], 0.0)])
    ]  # fmt: skip

    def run(*settings):
        recipe = load_recipe("digits", ["masks.candidates=6", "rollout.temperature=1.3", *settings])
        engine = TransformersEngine(base_vlm, rows_per_batch=64)
        policy = Answerer(engine, recipe.prompt, math_reward, CostLedger())
        problems = {problem.problem_id: problem for problem in chosen}
        repairer = Repairer(engine, recipe.prompt, math_reward, CostLedger())
        builder = GroupBuilder(recipe, problems, repairer, policy, open_auditor(recipe, policy), step)
        sampling = Sampling(recipe.rollout.max_new_tokens, recipe.rollout.temperature, seed=3)
        built = builder.build(rollouts, sampling)
        return policy, built.repairs, built.groups

    return run


def by_error(repairs):
    groups = {}
    for row in repairs:
        groups.setdefault(row["problem_id"], []).append(row)
    return groups


def test_the_cheapest_feasible_repair_is_selected(build):
    _, repairs, groups = build()
    found = {row["problem_id"]: row for row in groups if row["role"] == "repair"}
    choices = 0
    for problem_id, candidates in by_error(repairs).items():
        feasible = [row for row in candidates if row["reward"] == 1 and not row["flagged"]]
        if feasible:
            assert found[problem_id]["ids"] == min(feasible, key=lambda row: row["cost"])["ids"]
        else:
            assert problem_id not in found
        choices += len({row["cost"] for row in feasible}) > 1
        choices += min(row["cost"] for row in candidates) < min((row["cost"] for row in feasible), default=0)
    assert choices > 0


def test_a_pair_has_its_masks_and_the_policy_s_own_logprobs(build, repair_problems):
    problems = {problem.problem_id: problem for problem in repair_problems}
    policy, _, groups = build()
    pairs = [(error, repair) for error, repair in pairwise(groups) if repair["role"] == "repair"]
    assert pairs
    for error, repair in pairs:
        assert (error["role"], error["in_pair"], repair["in_pair"]) == ("error", True, True)
        masks = difference_masks(error["ids"], repair["ids"])
        assert (error["mask"], repair["mask"]) == (masks.error_T.tolist(), masks.repair_T.tolist())
        prompt = policy.prompt(problems[repair["problem_id"]])
        (scores,) = policy.engine.score([ScoreRequest(prompt, repair["ids"])], temperature=1.3)
        assert repair["old_logprobs"] == pytest.approx(scores.logprobs, abs=1e-4)


def test_a_flagged_repair_is_never_selected(build):
    """With `rewrite_share` 0 every correct repair is flagged."""
    _, repairs, groups = build("audit.rewrite_share=0.0")
    assert {row["flagged"] for row in repairs if row["reward"] == 1} == {True}
    assert {row["role"] for row in groups} == {"correct", "error"}
    assert not any(row["in_pair"] for row in groups)
    _, _, ungated = build("audit.rewrite_share=0.0", "masks.no_feasible=ungated")
    assert {(row["role"], row["in_pair"], all(row["mask"])) for row in ungated} == {
        ("correct", False, False), ("error", True, True),
    }  # fmt: skip
    _, free, _ = build("audit.auditor=none")
    assert any(row["selection"] != other["selection"] for row, other in zip(repairs, free, strict=True))


@pytest.mark.parametrize("truncate", ["none", "both"])
def test_step_granularity_marks_whole_sentences(build, truncate):
    policy, _, plain = build(f"masks.truncate={truncate}")
    _, _, stepped = build(f"masks.truncate={truncate}", "masks.granularity=step")
    _, _, lines = build(f"masks.truncate={truncate}", "masks.granularity=step", "masks.step_end=newline")
    vlm, wider = policy.engine.vlm, 0
    for token_row, row, line_row in zip(plain, stepped, lines, strict=True):
        ids, before = row["ids"], token_row["mask"]
        assert (ids, row["role"]) == (token_row["ids"], token_row["role"])
        step, steps = 0, []
        for position, token in enumerate(ids):
            steps.append(step)
            following = vlm.decode(ids[position + 1 :])
            step += vlm.decode([token]) == "." and (following == "" or following.startswith(" "))
        marked = {number for number, on in zip(steps, before, strict=True) if on}
        assert row["mask"] == [number in marked for number in steps]
        body = [on for on, token in zip(before, ids, strict=True) if token not in vlm.end_ids]
        assert line_row["mask"][: len(body)] == [any(body)] * len(body)
        wider += sum(row["mask"]) > sum(before)
    assert wider > 4
