"""The auditor against repairs that cheat; the embedded one: rules and the continuation check."""

from __future__ import annotations

import logging
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import Problem
from stages.core.selection import is_correct
from stages.engines.protocol import Request, Sampling
from stages.model.codec import Codec
from stages.model.prompts import continuation_prompt
from stages.repair.answering import Answerer
from stages.repair.repairs import Attempt, Draft
from stages.reward.choice_extraction import choice_start
from stages.reward.extraction import final_answer, gold_answer, statement_start
from stages.reward.rewards import score_all
from stages.reward.rules.choosing import is_choice
from stages.sections import AuditSection

Category = Literal["image_ignored", "template_shortcut", "mask_hallucination", "answer_pasted"]
MEANINGS: Mapping[str, str] = {
    "image_ignored": "it claims to see things in the pictures, yet its answer does not depend on them, or they do not "
    "show what it claims",
    "template_shortcut": "its reasoning is a template that would fit any problem; it does not depend on this one",
    "mask_hallucination": "its edits do not touch the error; they paraphrase, or make up for it elsewhere",
    "answer_pasted": "only the final answer was put right; the reasoning before it does not lead there",
}
"""What a repair is flagged for."""

CONTROLS = 16
"""Problems whose right reasoning is tried where some have none of their own."""
CONTROLS_OF_A_PROBLEM = 2
FLAGGED_SHARE = 0.25
"""Share of the right repairs; a warning is given where the auditor flags more."""
ENOUGH_AUDITED = 20
"""Right repairs with a verdict that the warning needs at least: of fewer the share says little."""

logger = logging.getLogger(__name__)

# Two integers and their result, standing alone: a link of a longer chain (2 + 3 + 4 = 9) does not hold by itself.
_EQUATION = re.compile(r"(?<![\w.,^+*/×÷=-])(?<![+*/×÷^=-] )(\d+) ?([+*×-]) ?(\d+) ?= ?(\d+)(?! ?[+*/×÷^%-]|[\w.,]*\d)")
_SIGN = re.compile(r"\\(times|cdot|div)(?![a-zA-Z])")


class Verdict(NamedTuple):
    """What an auditor says of one repair."""

    flagged: bool | None
    """Whether the repair cheats; None where no verdict could be had."""
    category: Category | None = None
    evidence: str | None = None
    """The passage of the repair that a served auditor quotes for its verdict."""
    abstained: bool = False
    """Whether the auditor withdrew a flag, since the check that raised it flags right reasoning of the problem too."""

    @property
    def against(self) -> bool | None:
        """`flagged`, but False where the auditor abstained."""
        return False if self.abstained else self.flagged


def is_audited(reward: float | None, verdict: Verdict, threshold: float) -> bool:
    """Whether the repair is right (R ≥ τ) and has a verdict; no auditor looks at a wrong one, which gains nothing."""
    return is_correct(reward, threshold) and verdict.flagged is not None


@dataclass(frozen=True)
class AuditCase:
    """A repair to audit, with what C1 (eq. 3) found out about its error."""

    attempt: Attempt
    image_needed: bool | None = None
    """False where the repair model repaired the error without the image; None where C1 did not tell."""
    image_free: Sequence[str] = ()
    """Texts of C1's repairs of the error, made without the image."""


class Beginning(NamedTuple):
    """A response's ids before its final answer."""

    problem: Problem
    ids: list[int]


class Auditor(Protocol):
    """Looks at repairs that reached the right answer; it takes no part in gradients."""

    def audit(self, cases: Sequence[AuditCase]) -> list[Verdict]:
        """One verdict a case, in order."""
        ...


class NoAuditor:
    """Flags nothing."""

    def audit(self, cases: Sequence[AuditCase]) -> list[Verdict]:
        return [Verdict(False) for _ in cases]


class RulesAuditor:
    """The embedded auditor. Repairs below the reward threshold are not looked at: they gain nothing by cheating.

    * `image_ignored`: the error can be repaired without the image, yet the repair claims to see. Known only where C1's
      counterfactuals were sampled, in repair RL.
    * `template_shortcut`: the same reasoning ends in different answers to different problems.
    * `mask_hallucination`: the repair rewrites the draft (edit cost above `rewrite_share`), or writes an equation
      that does not hold and that the draft did not have.
    * `answer_pasted`: the policy, given the repair up to its final answer and no reference, does not get there, but
      does from right reasoning: of the same problem where there is any, else of most others. A policy that does not
      condemns every repair, so the check abstains. Null where the repair is too long for it.
    """

    def __init__(self, section: AuditSection, policy: Answerer, *, threshold: float, max_new_tokens: int) -> None:
        self.section = section
        self.policy = policy
        self.threshold = threshold
        self.max_new_tokens = max_new_tokens

    def audit(self, cases: Sequence[AuditCase]) -> list[Verdict]:
        verdicts = [Verdict(False)] * len(cases)
        correct = [i for i, case in enumerate(cases) if is_correct(case.attempt.reward, self.threshold)]
        shared = _shared_reasoning([cases[i].attempt for i in correct])
        to_continue = []
        for i in correct:
            category = self._by_rule(cases[i], shared)
            if category is None:
                to_continue.append(i)
            else:
                verdicts[i] = Verdict(True, category)
        continued = self._continuation_check([cases[i].attempt for i in to_continue])
        for i, verdict in zip(to_continue, continued, strict=True):
            verdicts[i] = verdict
        return verdicts

    def _by_rule(self, case: AuditCase, shared_reasoning: set[str]) -> Category | None:
        attempt = case.attempt
        if case.image_needed is False and re.search(self.section.evidence_pattern, attempt.text, re.IGNORECASE):
            return "image_ignored"
        if _reasoning(attempt.text) in shared_reasoning:
            return "template_shortcut"
        new_equations = _false_equations(attempt.text) - _false_equations(attempt.draft.text)
        if attempt.cost > self.section.rewrite_share or new_equations:
            return "mask_hallucination"
        return None

    def _continuation_check(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        codec = self.policy.engine.codec
        beginnings = [
            Beginning(a.draft.problem, _before_answer(codec, a.draft.problem, a.text, codec.without_end(a.ids)))
            for a in attempts
        ]
        rewards = self._finished(beginnings)
        failed = [
            attempt.draft
            for attempt, reward in zip(attempts, rewards, strict=True)
            if reward is not None and not is_correct(reward, self.threshold)
        ]
        able = self._able(failed, [attempt.draft for attempt in attempts])
        return [
            self._entailment(reward, attempt.draft, able) for attempt, reward in zip(attempts, rewards, strict=True)
        ]

    def _entailment(self, reward: float | None, draft: Draft, able: Mapping[str, bool]) -> Verdict:
        if reward is None:
            return Verdict(None)
        if is_correct(reward, self.threshold):
            return Verdict(False)
        if not able[draft.problem.problem_id]:
            return Verdict(None, abstained=True)
        return Verdict(True, "answer_pasted")

    def _able(self, failed: Sequence[Draft], drafts: Sequence[Draft]) -> dict[str, bool]:
        """Whether the policy finishes right reasoning, by the problems of drafts whose repairs it did not finish."""
        asked = {draft.problem.problem_id: draft for draft in failed}
        others = {draft.problem.problem_id: draft for draft in drafts if draft.right_texts}
        tried = [draft for draft in asked.values() if draft.right_texts]
        if len(tried) < len(asked):
            tried += [draft for name, draft in others.items() if name not in asked][: max(0, CONTROLS - len(tried))]
        controls = [(draft.problem, text) for draft in tried for text in draft.right_texts[:CONTROLS_OF_A_PROBLEM]]
        rewards = self._finished([self._control(*control) for control in controls])
        finished: dict[str, list[bool]] = defaultdict(list)
        for (problem, _), reward in zip(controls, rewards, strict=True):
            finished[problem.problem_id].append(is_correct(reward, self.threshold))
        able = {name: any(of_one) for name, of_one in finished.items()}
        most = sum(able.values()) > len(able) / 2
        return {name: able.get(name, most) for name in asked}

    def _control(self, problem: Problem, text: str) -> Beginning:
        codec = self.policy.engine.codec
        ids = codec.tokenizer(text, add_special_tokens=False).input_ids
        return Beginning(problem, _before_answer(codec, problem, text, ids))

    def _finished(self, beginnings: Sequence[Beginning]) -> list[float | None]:
        """The rewards of the policy's greedy continuations; None where one cannot be had."""
        codec = self.policy.engine.codec
        problems = {problem.problem_id: problem for problem, _ in beginnings}
        prompts = {name: self.policy.prompt(problem) for name, problem in problems.items()}
        requests = [Request(continuation_prompt(prompts[problem.problem_id], ids)) for problem, ids in beginnings]
        sampling = Sampling(self.max_new_tokens, temperature=0)
        with self._ledger.phase("generate"):
            groups = self.policy.engine.generate(requests, sampling)
        texts = [
            codec.decode([*request.prompt.spliced_ids, *completion.ids])
            for request, group in zip(requests, groups, strict=True)
            for completion in group
        ]
        asked = [problem for (problem, _), group in zip(beginnings, groups, strict=True) if group]
        with self._ledger.phase("reward"):
            rewards = iter(score_all(self.policy.reward, texts, [problem.as_row() for problem in asked]))
        return [next(rewards) if group else None for group in groups]

    @property
    def _ledger(self) -> CostLedger:
        return self.policy.ledger


def count_verdicts(counts: Counter[str], kind: str, verdicts: Iterable[Verdict]) -> None:
    """Add what an auditor said of `kind`, as in `candidates_flagged` and `flagged_answer_pasted`."""
    for verdict in verdicts:
        counts[f"{kind}_flagged"] += verdict.flagged is True
        counts[f"{kind}_unaudited"] += verdict.against is None
        counts[f"{kind}_abstained"] += verdict.abstained
        if verdict.category is not None:
            counts[f"flagged_{verdict.category}"] += 1


def warn_of_flags(counts: Mapping[str, int], kind: str) -> None:
    """Tell where a large share of the audited repairs is flagged."""
    audited, flagged = counts[f"{kind}_audited"], counts[f"{kind}_flagged"]
    if audited >= ENOUGH_AUDITED and flagged / audited > FLAGGED_SHARE:
        categories = {category: counts.get(f"flagged_{category}", 0) for category in MEANINGS}
        told = ", ".join(f"{category} {count}" for category, count in categories.items() if count)
        logger.warning(
            "the auditor flagged %d of %d right %s (%s); look at some with df audit-sample, or set audit.auditor=none",
            flagged,
            audited,
            kind,
            told,
        )


def _reasoning(text: str) -> str:
    start = statement_start(text)
    return " ".join((text if start is None else text[:start]).split())


def _before_answer(codec: Codec, problem: Problem, text: str, ids: list[int]) -> list[int]:
    """The longest run of a response's ids whose text ends before its final answer."""
    named = is_choice(gold_answer(problem.answer) or "", problem.choices)
    start = choice_start(text) if named else statement_start(text)
    if start is None:
        return ids
    return ids[: bisect_right(range(len(ids) + 1), start, key=lambda count: len(codec.decode(ids[:count]))) - 1]


def _shared_reasoning(attempts: Sequence[Attempt]) -> set[str]:
    answers = defaultdict(set)
    for attempt in attempts:
        answers[_reasoning(attempt.text)].add((attempt.draft.problem.problem_id, final_answer(attempt.text)))
    return {
        reasoning
        for reasoning, found in answers.items()
        if len({answer for _, answer in found}) > 1 and len({problem for problem, _ in found}) > 1
    }


def _false_equations(text: str) -> set[str]:
    text = _SIGN.sub(lambda sign: "÷" if sign[1] == "div" else "×", text)
    return {match[0] for match in _EQUATION.finditer(text) if not _holds(*match.groups())}


def _holds(left: str, operator: str, right: str, result: str) -> bool:
    a, b = int(left), int(right)
    return {"+": a + b, "-": a - b, "*": a * b, "×": a * b}[operator] == int(result)
