"""What a repair prompt shows as right: drawn by the seed, of the kinds that the recipe names, the answer if need be."""

from collections import Counter
from dataclasses import replace

import pytest

from stages.artifacts.columns import REPAIR_SET
from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import ProblemSet, encode_image
from stages.artifacts.store import write_rows
from stages.audit.auditor import NoAuditor
from stages.engines.protocol import Completion
from stages.engines.transformers_engine import TransformersEngine
from stages.recipe import load_recipe
from stages.repair.answering import Answer
from stages.repair.references import References
from stages.repair.repairs import Draft, Repairer
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import ErrorSource
from stages.sections import PromptSection
from stages.training.heldout import HeldOut, annotated_reference, repair_heldout

STYLE = PromptSection(
    repair_instruction="Repair this draft:",
    reference_instruction="Right is {reference}.",
    response_reference_instruction="A right one: {reference}!",
)
SIBLINGS = ["first", "second", "third"]


class Recording(TransformersEngine):
    """Keeps what was generated from."""

    def generate(self, requests, sampling):
        self.requests = list(requests)
        return super().generate(requests, sampling)


@pytest.fixture
def named(problems):
    """A function: a problem of this name, with or without a preferred response."""

    def make(number, **extra):
        return replace(problems[0], problem_id=f"p{number}", extra=extra)

    return make


def test_siblings_are_drawn_alike_and_again_by_the_seed(named):
    def draws(seed):
        return [References(["sibling"], seed, Counter()).draw(named(i), i % 7, SIBLINGS) for i in range(600)]

    first, counted = draws(1), Counter(draws(1))
    assert first == draws(1) != draws(2)
    assert set(counted) == set(SIBLINGS)
    assert all(150 < count < 250 for count in counted.values())  # four standard deviations around 200 are 46
    references = References(["sibling"], 1, Counter())
    assert len({references.draw(named(0), sample, SIBLINGS) for sample in range(20)}) == 3


def test_kinds_are_drawn_alike(named):
    counts = Counter()
    references = References(["answer", "preferred", "sibling"], 0, counts)
    drawn = Counter(references.draw(named(i, preferred="mine"), 0, ["other"]) for i in range(600))

    assert drawn.keys() == {None, "mine", "other"}
    assert all(150 < count < 250 for count in drawn.values())
    assert not counts


@pytest.mark.parametrize(
    ("kind", "extra", "siblings", "expected"),
    [
        ("answer", {"preferred": "mine"}, SIBLINGS[:1], None),
        ("preferred", {"preferred": "mine"}, SIBLINGS[:1], "mine"),
        ("preferred", {"chosen": "theirs"}, SIBLINGS[:1], "theirs"),
        ("sibling", {"preferred": "mine"}, SIBLINGS[:1], "first"),
    ],
)
def test_each_kind_shows_its_own(named, kind, extra, siblings, expected):
    assert References([kind], 0, Counter()).draw(named(0, **extra), 0, siblings) == expected


@pytest.mark.parametrize(("kind", "extra"), [("preferred", {}), ("preferred", {"preferred": None}), ("sibling", {})])
def test_the_answer_takes_the_place_of_what_is_missing_and_is_counted(named, kind, extra):
    counts = Counter()
    references = References([kind], 0, counts)

    assert [references.draw(named(i, **extra), 0, []) for i in range(3)] == [None] * 3
    assert counts == {"references_missing": 3}


def test_a_response_has_an_instruction_of_its_own(tiny_vlm, named):
    repairer = Repairer(TransformersEngine(tiny_vlm, rows_per_batch=1), STYLE, reward=None, ledger=None)
    draft = Draft(replace(named(0), answer="71"), 0, [100, tiny_vlm.end_ids[0]], "d")
    shown = replace(draft, right_response="7 + 1")

    assert repairer.prompt(draft).tail.startswith("\nRight is 71.<|im_end|>")
    assert repairer.prompt(shown).tail.startswith("\nA right one: 7 + 1!<|im_end|>")
    assert repairer.prompt(shown, with_reference=False) == repairer.prompt(draft, with_reference=False)


def test_sft_prompts_cover_the_kinds(tiny_vlm, repair_problems, step):
    """Half the problems have a preferred response, of which a third of the draws asks for none."""
    recipe = load_recipe("digits", ["prompt.references=[answer, preferred, sibling]"])
    repairer = Repairer(TransformersEngine(tiny_vlm, rows_per_batch=1), recipe.prompt, None, CostLedger())
    references = References(recipe.prompt.references, recipe.seed, step.tally.counts)
    stage = SftRepair(recipe, None, None)
    tails = Counter()
    for number, problem in enumerate(repair_problems):
        preferred = f"like {number}" if number % 2 else None
        problem = replace(problem, extra=problem.extra | {"preferred": preferred})
        row = stage._row(repairer, problem, annotated_reference(references, problem, 0), True)
        withheld = stage._row(repairer, problem, None, False)
        text, without = (tiny_vlm.decode(prompt.ids) for prompt in (row.prompt, withheld.prompt))
        is_preferred = text.endswith(f"A right answer: like {number}\nassistant\n")
        assert is_preferred or text.endswith(f"The right answer is {problem.answer}.\nassistant\n")
        assert "right answer" not in without
        tails[preferred is not None, is_preferred] += 1
    assert tails[False, True] == 0
    assert tails[True, True] > tails[True, False] > 0
    assert 0 < step.tally.counts["references_missing"] < tails[False, False] == 20


class Given:
    """A policy whose answers to three problems are given; right ones that no prompt can show are among them."""

    def __init__(self, engine):
        self.engine = engine

    def answer(self, *_):
        rewards = [0.0, 1.0, None, 0.0, 1.0, 1.0], [0.0, 0.0], [0.0, 1.0]
        texts = [
            [*(f"text {k}" for k in range(4)), "text <|image_pad|>", "text \ue000"],
            ["text 4", "text 5"],
            ["text 6", "<|video_pad|>text"],
        ]
        return [
            [Answer(Completion([5], [0.0], "stop"), *answer) for answer in zip(*group, strict=True)]
            for group in zip(texts, rewards, strict=True)
        ]


def test_repair_rl_shows_correct_drafts_of_the_same_problem(base_vlm, problems, step):
    policy = Given(TransformersEngine(base_vlm, rows_per_batch=1))
    settings = ["prompt.references=[sibling]", "repair_rl.text_only_tries=0"]
    rows = ErrorSource(load_recipe("digits", settings), policy, step, HeldOut([]))._rows(problems[:3], 0)

    first, second, third = (problem.problem_id for problem in problems[:3])
    assert [(row["problem_id"], row["sample"], row["text"], row["right_response"]) for row in rows] == [
        (first, 0, "text 0", "text 1"),
        (first, 3, "text 3", "text 1"),
        (second, 0, "text 4", None),
        (second, 1, "text 5", None),
        (third, 0, "text 6", None),
    ]
    assert step.tally.counts["references_missing"] == 3


def test_held_out_errors_are_shown_what_the_set_prefers(base_vlm, repair_problems, math_reward, step, tmp_path):
    """The last two of four are held out; the last has no preferred response."""
    rows = [
        {"problem_id": p.problem_id, "question": p.question, "answer": p.answer, "kind": p.kind, **p.extra,
         "images": [encode_image(image) for image in p.images],
         "preferred": None if k == 3 else f"preferred {k}"}
        for k, p in enumerate(repair_problems[:4])
    ]  # fmt: skip
    write_rows(tmp_path / "repair_set.parquet", REPAIR_SET, rows)
    settings = ["prompt.references=[preferred]", "sft.heldout_share=0.5", "rollout.max_new_tokens=4"]
    recipe = load_recipe("digits", settings)
    engine = Recording(base_vlm, rows_per_batch=64)
    repairer = Repairer(engine, recipe.prompt, math_reward, CostLedger())
    repair_heldout(repairer, NoAuditor(), ProblemSet(tmp_path / "repair_set.parquet", REPAIR_SET), recipe, step)

    shown = [request.prompt.tail.split("<|im_end|>")[0] for request in engine.requests]
    assert shown == ["\nA right answer: preferred 2", f"\nThe right answer is {repair_problems[3].answer}."]
    assert step.tally.counts["references_missing"] == 1
