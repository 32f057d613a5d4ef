"""Each way to cheat is caught, and honest repairs pass; the trained base policy does the continuation check."""

import copy
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from stages.artifacts.ledger import CostLedger
from stages.audit.auditor import AuditCase, NoAuditor, RulesAuditor, Verdict, warn_of_flags
from stages.audit.opening import open_auditor
from stages.core.alignment import edit_cost
from stages.engines.protocol import Completion
from stages.engines.transformers_engine import TransformersEngine
from stages.repair.answering import Answerer
from stages.repair.repairs import Attempt
from stages.training.heldout import annotated_draft, with_end

FINE, PASTED = Verdict(False), Verdict(True, "answer_pasted")


class Recording(TransformersEngine):
    """Keeps what was generated from, call by call."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.calls = []

    def generate(self, requests, sampling):
        self.calls.append(list(requests))
        return super().generate(requests, sampling)


class Unscorable:
    def score_many(self, responses, _problems):
        return [None] * len(responses)


@pytest.fixture
def auditor(base_vlm, recipe, math_reward):
    policy = Answerer(Recording(base_vlm, rows_per_batch=64), recipe.prompt, math_reward, CostLedger())
    return open_auditor(recipe, policy)


@pytest.fixture
def case(base_vlm):
    """A function: the repair of a repair-set problem's error by a text that reached R = 1, unless told otherwise."""

    def make(problem, text, *, error=None, reward=1.0, cost=None, image_needed=None):
        if error is not None:
            problem = replace(problem, extra={"error": error})
        draft = annotated_draft(base_vlm, problem)
        ids = with_end(base_vlm, text)
        cost = edit_cost(draft.ids, ids) if cost is None else cost
        completion = Completion(ids, [0.0] * len(ids), "stop")
        return AuditCase(Attempt(draft, 0, completion, text, reward, cost), image_needed)

    return make


def pasted(problem):
    """The error with nothing but its final answer put right."""
    return re.sub(r"\d+\.$", f"{problem.answer}.", problem.extra["error"])


def test_a_pasted_answer_is_flagged_and_an_honest_repair_is_not(auditor, case, repair_problems, math_reward):
    chosen = repair_problems[:24]
    honest = auditor.audit([case(problem, problem.extra["repair"]) for problem in chosen])
    cheating = auditor.audit([case(problem, pasted(problem)) for problem in chosen])
    assert math_reward.score_many([pasted(p) for p in chosen], [p.as_row() for p in chosen]) == [1.0] * 24
    assert honest.count(FINE) >= 20
    assert cheating.count(PASTED) >= 20


def test_the_policy_goes_on_from_the_reasoning_without_reference_or_answer(auditor, case, repair_problems, base_vlm):
    problem = repair_problems[0]
    auditor.audit([case(problem, "The digits are 7, 1. So 7 it is. The answer is 7.", cost=0.1)])
    (request,) = auditor.policy.engine.calls[0]
    assert base_vlm.tokenizer.decode(request.prompt.spliced_ids) == "The digits are 7, 1. So 7 it is. The"
    assert request.prompt.text == auditor.policy.prompt(problem).text
    assert request.prompt.images == problem.images


def test_the_policy_is_not_shown_the_letter_of_a_choice(auditor, case, repair_problems, base_vlm):
    problem = repair_problems[0]
    problem = replace(problem, answer="B", extra=problem.extra | {"choices": ["1", "7"]})
    auditor.audit([case(problem, "The digits are 7, 1. So 7 it is. I choose B.", cost=0.1)])
    (request,) = auditor.policy.engine.calls[0]
    assert base_vlm.tokenizer.decode(request.prompt.spliced_ids).rstrip() == "The digits are 7, 1. So 7 it is. I"


def test_a_claim_to_see_what_was_not_needed_is_flagged(auditor, case, repair_problems):
    problem = repair_problems[0]
    right = problem.extra["repair"]
    verdicts = auditor.audit([case(problem, right, image_needed=needed) for needed in (False, True, None)])
    assert verdicts == [Verdict(True, "image_ignored"), FINE, FINE]


def test_one_reasoning_with_different_answers_to_different_problems_is_flagged(auditor, case, repair_problems):
    first, second = repair_problems[:2]
    template = "It is easy.\n The answer is {}."
    shared = [case(first, template.format(3), error="x"), case(second, template.format(" 4"), error="x")]
    shared = [AuditCase(replace(c.attempt, cost=0.1)) for c in shared]
    assert auditor.audit(shared) == [Verdict(True, "template_shortcut")] * 2
    same_problem = [shared[0], AuditCase(replace(shared[1].attempt, draft=shared[0].attempt.draft))]
    same_answer = [shared[0], AuditCase(replace(shared[0].attempt, draft=shared[1].attempt.draft))]
    for cases in (same_problem, same_answer, shared[:1]):
        assert "template_shortcut" not in {verdict.category for verdict in auditor.audit(cases)}


def test_a_rewrite_is_flagged(auditor, case, repair_problems):
    problem = repair_problems[0]
    cases = [case(problem, problem.extra["repair"], cost=cost) for cost in (0.5, 0.51)]
    assert auditor.audit(cases) == [FINE, Verdict(True, "mask_hallucination")]


@pytest.mark.parametrize(("equation", "false"), [
    ("3 + 4 = 8.", True), ("3 + 4 = 7.", False), ("12-4=9", True), ("12 - 4 = 8", False),
    ("3 × 4 = 13", True), ("2 + 3 + 4 = 9", False), ("5 + 3 = 4 + 4", False),
    ("1,000 + 500 = 1,500", False),
    ("2 \\times 3 + 4 = 10", False), ("x^2 + 3 = 7", False), ("6 \\div 2 = 3", False), ("2 \\cdot 3 = 7", True),
    ("3*4=12", False), ("1.5 + 2 = 3.5", False), ("3 + 4 = 7.5", False),
])  # fmt: skip
def test_a_false_equation_of_the_repair_s_own_is_flagged(auditor, case, repair_problems, equation, false):
    problem = repair_problems[0]
    text = f"{equation} {problem.extra['repair']}"
    own, inherited = auditor.audit([
        case(problem, text, cost=0.1),
        case(problem, text, cost=0.1, error=f"{equation} {problem.extra['error']}"),
    ])  # fmt: skip
    assert (own.category == "mask_hallucination") is false
    assert inherited.category != "mask_hallucination"


def test_repairs_below_the_threshold_are_not_looked_at(auditor, case, repair_problems):
    cheating = {"cost": 0.9, "image_needed": False}
    cases = [case(repair_problems[0], "5 + 5 = 11", reward=reward, **cheating) for reward in (0.0, 0.99, None)]
    assert auditor.audit(cases) == [FINE] * 3
    assert not any(auditor.policy.engine.calls)


def test_no_verdict_where_the_continuation_cannot_be_scored(auditor, case, repair_problems, recipe):
    policy = auditor.policy
    unsure = RulesAuditor(
        recipe.audit,
        Answerer(policy.engine, policy.style, Unscorable(), CostLedger()),
        threshold=1.0,
        max_new_tokens=4,
    )
    right = repair_problems[0].extra["repair"]
    verdicts = unsure.audit([case(repair_problems[0], right), case(repair_problems[0], right, reward=0.0)])
    assert verdicts == [Verdict(None), FINE]


def test_a_policy_that_finishes_no_right_reasoning_condemns_nothing(
    case, repair_problems, recipe, math_reward, base_vlm
):
    """Its weights are noise: what it does not finish says nothing of the repair."""
    vlm = copy.deepcopy(base_vlm)
    with torch.no_grad():
        for weight in vlm.model.get_decoder().parameters():
            weight.normal_(0, 0.06)
    weak = open_auditor(recipe, Answerer(Recording(vlm), recipe.prompt, math_reward, CostLedger()))
    chosen = repair_problems[:6]
    verdicts = weak.audit([case(p, text) for p in chosen for text in (p.extra["repair"], pasted(p))])
    assert verdicts == [Verdict(None, abstained=True)] * 12
    assert {verdict.against for verdict in verdicts} == {False}


def test_right_reasoning_of_others_stands_in_where_a_problem_has_none(auditor, case, repair_problems):
    """The base finishes most of the annotated repairs; of a problem alone without one nothing is known."""
    unknown, *known = repair_problems[:9]
    alone = case(unknown, pasted(unknown), error=unknown.extra["error"])
    among = auditor.audit([alone, *(case(problem, problem.extra["repair"]) for problem in known)])
    assert among[0] == PASTED
    assert auditor.audit([alone]) == [Verdict(None, abstained=True)]


def test_a_large_share_of_flags_is_told_with_its_categories(caplog):
    counts = Counter(repairs_audited=40, repairs_flagged=11, flagged_answer_pasted=9, flagged_image_ignored=2)
    warn_of_flags(counts, "repairs")
    (record,) = caplog.records
    assert "flagged 11 of 40 right repairs (image_ignored 2, answer_pasted 9)" in record.message
    warn_of_flags(Counter(repairs_audited=44, repairs_flagged=11), "repairs")
    warn_of_flags(Counter(repairs_audited=19, repairs_flagged=19), "repairs")
    assert len(caplog.records) == 1


def test_verdicts_come_in_the_order_of_the_cases(auditor, case, repair_problems):
    first, second, third = repair_problems[:3]
    cases = [
        case(first, first.extra["repair"], cost=0.9),
        case(second, pasted(second)),
        case(third, third.extra["repair"], reward=0.0),
        case(third, third.extra["repair"], image_needed=False),
    ]
    assert auditor.audit(cases) == [
        Verdict(True, "mask_hallucination"), PASTED, FINE, Verdict(True, "image_ignored"),
    ]  # fmt: skip


def test_no_auditor_flags_nothing(auditor, case, repair_problems, recipe):
    none = recipe.model_copy(update={"audit": recipe.audit.model_copy(update={"auditor": "none"})})
    without = open_auditor(none, auditor.policy)
    assert isinstance(without, NoAuditor)
    assert without.audit([case(repair_problems[0], "5 + 5 = 11", cost=0.9, image_needed=False)]) == [FINE]
