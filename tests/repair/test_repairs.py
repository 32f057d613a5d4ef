"""Repairs: what the repair model is given, and what it gives back."""

import numpy as np
import pytest

from stages.artifacts.ledger import CostLedger
from stages.engines.protocol import Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.prompts import repair_prompt
from stages.repair.repairs import Repairer
from stages.training.heldout import annotated_draft

SAMPLING = Sampling(72, 1.0, seed=1)


class Recording(TransformersEngine):
    """Keeps what was generated from."""

    def generate(self, requests, sampling):
        self.requests = list(requests)
        return super().generate(requests, sampling)


@pytest.fixture
def repairer(base_vlm, recipe, math_reward):
    return Repairer(Recording(base_vlm, rows_per_batch=64), recipe.prompt, math_reward, CostLedger())


@pytest.fixture
def drafts(base_vlm, repair_problems):
    return [annotated_draft(base_vlm, problem) for problem in repair_problems[:5]]


def distance(first, second):
    """Levenshtein's recurrence, as it stands in a textbook."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(last + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


def test_repairs_come_with_their_reward_and_their_cost_in_ids(repairer, drafts, base_vlm):
    groups = repairer.repair(drafts, 3, SAMPLING)
    assert [[(a.draft, a.index) for a in group] for group in groups] == [[(d, k) for k in range(3)] for d in drafts]
    attempts = [attempt for group in groups for attempt in group]
    for attempt in attempts:
        draft, ids = attempt.draft, attempt.completion.ids
        assert attempt.text == base_vlm.tokenizer.decode(ids, skip_special_tokens=True)
        assert attempt.cost == pytest.approx(distance(draft.ids, ids) / max(len(draft.ids), len(ids)))
        assert attempt.reward == float(attempt.text.endswith(f"The answer is {draft.problem.answer}."))
    assert {attempt.reward for attempt in attempts} == {0.0, 1.0}
    assert repairer.ledger.device_seconds.keys() == {"generate", "reward"}


def test_the_end_token_counts_in_the_cost(repairer, drafts):
    """Cut after two tokens: neither side's ids lose their end token, which only the draft has."""
    (group,) = repairer.repair(drafts[:1], 1, Sampling(2, 1.0, seed=1))
    ids, whole = group[0].ids, drafts[0].ids
    assert group[0].completion.finish_reason == "length"
    assert group[0].cost == pytest.approx(distance(whole, ids) / len(whole))


def test_the_prompt_holds_image_draft_and_reference(repairer, drafts, base_vlm, recipe):
    repairer.repair(drafts, 2, SAMPLING)
    for request, draft in zip(repairer.engine.requests, drafts, strict=True):
        problem, ids = draft.problem, draft.ids[:-1]
        assert request.n == 2
        assert request.prompt == repair_prompt(base_vlm.processor, recipe.prompt, problem, ids, problem.answer)
        assert f"The right answer is {problem.answer}." in request.prompt.tail


@pytest.mark.parametrize("blank", ["zeros", "noise"])
def test_the_counterfactual_withholds_reference_and_image(repairer, drafts, base_vlm, recipe, blank):
    repairer.repair_without_image(drafts, 2, SAMPLING, blank, with_reference=False)
    for request, draft in zip(repairer.engine.requests, drafts, strict=True):
        problem = draft.problem
        expected = repair_prompt(base_vlm.processor, recipe.prompt, problem, draft.ids[:-1], None)
        assert (request.prompt.text, request.prompt.tail) == (expected.text, expected.tail)
        assert request.prompt.spliced_ids == tuple(draft.ids[:-1])
        assert "right answer" not in request.prompt.text + request.prompt.tail
        for image, original in zip(request.prompt.images, problem.images, strict=True):
            assert image.size == original.size
            assert not np.array_equal(np.asarray(image), np.asarray(original))
            assert np.asarray(image).any() == (blank == "noise")


def test_the_image_decides_what_is_repaired(repairer, drafts):
    def correct(groups):
        return sum(attempt.reward for group in groups for attempt in group)

    seeing = repairer.repair(drafts, 4, SAMPLING, with_reference=False)
    blind = repairer.repair_without_image(drafts, 4, SAMPLING, "zeros", with_reference=False)
    assert correct(seeing) > correct(blind)
