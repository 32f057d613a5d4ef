"""C1, the text-only filter and the audit gate on the trained base policy: what each of them changes."""

from dataclasses import replace
from statistics import mean, pstdev
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stages.artifacts.columns import EPISODES, METRICS, PROBLEMS
from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import EncodedImages, ProblemSet, Video, encode_image
from stages.artifacts.stage import execute
from stages.artifacts.step import Plan, Step, Tally
from stages.artifacts.store import iterate_rows, write_rows
from stages.audit.auditor import Verdict
from stages.audit.opening import open_auditor
from stages.engines.protocol import Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.image_removal import without_image
from stages.repair.repairs import Repairer
from stages.reward.extraction import final_answer
from stages.reward.rewards import Reward
from stages.s2_rl_repair import ErrorSource, RlRepair
from stages.training.critic import CRITIC
from stages.training.heldout import HeldOut, annotated_draft
from stages.training.metrics import MetricsLog
from stages.training.repair_loop import Episode, RepairLoop, _summary
from stages.training.trainer import OPTIMIZER_STATE, Trainer

NEARLY_GREEDY = "rollout.temperature=0.01"
NO_AUDIT = "audit.auditor=none"
IMPOSSIBLE = "999"


class Recording(TransformersEngine):
    """Keeps every call's requests and completions."""

    def __init__(self, vlm):
        super().__init__(vlm, rows_per_batch=64)
        self.calls, self.made = [], []

    def generate(self, requests, sampling):
        self.calls.append(list(requests))
        self.made.append(super().generate(requests, sampling))
        return self.made[-1]


class ByTurns(Reward):
    """A reward that goes round a list."""

    def __init__(self, *rewards):
        self.rewards = rewards

    def score_many(self, responses, _problems):
        return [self.rewards[i % len(self.rewards)] for i in range(len(responses))]


@pytest.fixture
def loop_of(base_vlm, copy_of, math_reward, step):
    """A function: the repair loop of a recipe with these settings, its repair model a copy of the base policy."""

    def make(*settings, reward=math_reward, reference=None):
        recipe = load_recipe("digits", ["repair_rl.repairs_per_error=4", *settings])
        policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=64), recipe.prompt, reward, CostLedger())
        repairer = Repairer(Recording(copy_of(base_vlm)), recipe.prompt, reward, CostLedger())
        step.tally = Tally()
        trainer = Trainer(
            repairer.engine.vlm, recipe.repair_rl.optimizer, temperature=recipe.rollout.temperature, reference=reference
        )
        return RepairLoop(recipe, repairer, open_auditor(recipe, policy), step, trainer, MetricsLog())

    return make


@pytest.fixture(scope="module")
def image_free_drafts(base_vlm, repair_problems, recipe, math_reward):
    """Errors whose gold answer is what the base policy repairs them to on a blank image."""
    repairer = Repairer(TransformersEngine(base_vlm, rows_per_batch=64), recipe.prompt, math_reward, CostLedger())
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:6]]
    blind = repairer.repair_without_image(drafts, 1, Sampling(72, 0.0), "zeros", with_reference=False)
    return [
        replace(draft, problem=replace(draft.problem, answer=final_answer(attempt.text)))
        for draft, (attempt,) in zip(drafts, blind, strict=True)
    ]


def penalised(row):
    return pytest.approx(row["reward"] - 0.5 * row["cost"])


def test_c1_gates_what_can_be_repaired_without_the_image(loop_of, image_free_drafts):
    drafts = image_free_drafts[:2] + [replace(d, problem=replace(d.problem, answer=IMPOSSIBLE))
                                      for d in image_free_drafts[2:4]]  # fmt: skip
    gated, free = loop_of(NEARLY_GREEDY, NO_AUDIT), loop_of(NEARLY_GREEDY, NO_AUDIT, "repair_rl.c1=false")
    gated.iterate(0, drafts)
    assert gated.step.tally.counts["errors_gated_by_c1"] == 2
    free.iterate(0, drafts)
    assert [row["gate_c1"] for row in gated.episodes] == [False] * 8 + [True] * 8
    assert [row["gate_c1"] for row in free.episodes] == [True] * 16
    assert [row["text"] for row in gated.episodes] == [row["text"] for row in free.episodes]
    for with_c1, without in zip(gated.episodes, free.episodes, strict=True):
        assert without["repair_reward"] == penalised(without)
        assert with_c1["repair_reward"] == (without["repair_reward"] if with_c1["gate_c1"] else 0)
    assert any(row["repair_reward"] for row in free.episodes[:8])


def test_errors_that_c1_gates_leave_the_repair_model_as_it_was(loop_of, image_free_drafts, base_vlm):
    loop = loop_of(NEARLY_GREEDY, NO_AUDIT)
    loop.iterate(0, image_free_drafts[:3])
    weights = zip(loop.repairer.engine.vlm.model.parameters(), base_vlm.model.parameters(), strict=True)
    assert all(torch.equal(own, base) for own, base in weights)


@pytest.mark.parametrize(("option", "shown"), [("withhold", False), ("keep", True)])
def test_c1_asks_on_the_blank_image_with_the_reference_withheld(loop_of, image_free_drafts, option, shown):
    loop = loop_of(f"repair_rl.c1_reference={option}", "repair_rl.c1_tries=3", NO_AUDIT)
    loop.iterate(0, image_free_drafts[:2])
    repairs, counterfactuals = loop.repairer.engine.calls
    assert [request.n for request in repairs + counterfactuals] == [4, 4, 3, 3]
    for request, blind, draft in zip(repairs, counterfactuals, image_free_drafts[:2], strict=True):
        reference = f"The right answer is {draft.problem.answer}."
        assert reference in request.prompt.tail
        assert (reference in blind.prompt.tail) is shown
        assert request.prompt.images == draft.problem.images
        assert not any(np.asarray(image).any() for image in blind.prompt.images)


def test_the_audit_gate_zeroes_filters_or_does_nothing(loop_of, base_vlm, repair_problems, monkeypatch):
    """With `rewrite_share` 0 every correct repair that changes a token is flagged."""
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:5]]

    def episodes(*settings):
        loop = loop_of("repair_rl.c1=false", "rollout.temperature=1.0", *settings)
        counted = []
        monkeypatch.setattr(loop.trainer, "step", lambda _, __, totals: counted.append(totals.num_sequences) or {})
        loop.iterate(0, drafts)
        return loop.episodes, sum(counted), loop.step.tally

    zeroed, zeroed_count, tally = episodes("audit.rewrite_share=0.0")
    flagged = [row["category"] == "mask_hallucination" for row in zeroed]
    assert 0 < sum(flagged) < len(flagged) == zeroed_count
    assert tally.counts["repairs_flagged"] == tally.counts["flagged_mask_hallucination"] == sum(flagged)
    filtered, filtered_count, tally = episodes("audit.rewrite_share=0.0", "audit.effect=filter")
    assert tally.dropped["without_reward"] == sum(flagged) == len(flagged) - filtered_count
    task, _, _ = episodes("audit.rewrite_share=0.0", "repair_rl.gating=task")
    open_, open_count, _ = episodes(NO_AUDIT)
    assert open_count == len(flagged)
    for is_flagged, zero, filter_, on_task, row in zip(flagged, zeroed, filtered, task, open_, strict=True):
        assert zero["text"] == filter_["text"] == on_task["text"] == row["text"]
        assert row["repair_reward"] == penalised(row)
        assert zero["repair_reward"] == (0 if is_flagged else penalised(row))
        assert filter_["repair_reward"] == (None if is_flagged else penalised(row))
        assert on_task["repair_reward"] == (pytest.approx(-0.5 * row["cost"]) if is_flagged else penalised(row))


def test_training_rows_are_the_sampled_repairs(loop_of, repair_problems, monkeypatch):
    """Their advantages are within an error."""
    loop = loop_of("repair_rl.c1=false", "rollout.temperature=1.0", NO_AUDIT)
    vlm = loop.repairer.engine.vlm
    drafts = [annotated_draft(vlm, problem) for problem in repair_problems[:3]]
    trained = []
    monkeypatch.setattr(loop.trainer, "step", lambda rows, *_: trained.extend(rows) or {})
    loop.iterate(0, drafts)
    assert [vlm.decode(row.ids) for row in trained] == [row["text"] for row in loop.episodes]
    for error, draft in enumerate(drafts):
        rows = trained[4 * error : 4 * error + 4]
        rewards = np.array([row["repair_reward"] for row in loop.episodes[4 * error : 4 * error + 4]])
        expected = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
        assert [row.advantage for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
        assert all(row.prompt.ids == encode_prompt(vlm, loop.repairer.prompt(draft)).ids for row in rows)
        assert all(len(row.old_logprobs_T) == len(row.ids) for row in rows)


def test_repairs_that_could_not_be_scored_are_not_trained_on(loop_of, base_vlm, repair_problems, monkeypatch):
    loop = loop_of("repair_rl.c1=false", NO_AUDIT, reward=ByTurns(1.0, None, 0.0, 1.0))
    trained = []
    monkeypatch.setattr(loop.trainer, "step", lambda rows, *_: trained.extend(rows) or {})
    loop.iterate(0, [annotated_draft(base_vlm, repair_problems[0])])
    assert [row["repair_reward"] is None for row in loop.episodes] == [False, True, False, False]
    assert [row.advantage > 0 for row in trained] == [True, False, True]
    assert sum(row.advantage for row in trained) == pytest.approx(0, abs=1e-5)
    assert loop.step.tally.dropped["without_reward"] == 1


def test_on_policy_ratios_start_at_one(loop_of, base_vlm, repair_problems):
    """The sampler's log-probs and the trainer's are of the same distribution: prompt, temperature, banned ids."""
    loop = loop_of("repair_rl.c1=false", "rollout.temperature=0.7", NO_AUDIT)
    loop.iterate(0, [annotated_draft(base_vlm, problem) for problem in repair_problems[:4]])
    metrics = {row["metric"]: row["value"] for row in loop.log.rows if row["step"] == 1}
    assert metrics["ratio_mean/repair"] == pytest.approx(1, abs=1e-4)
    assert metrics["ratio_max/repair"] == pytest.approx(1, abs=1e-3)


@pytest.fixture
def text_only_problems(problems, base_vlm, recipe, math_reward, tmp_path):
    """Five problems: the first three have the policy's own answer on the blank image for gold answer."""
    policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=64), recipe.prompt, math_reward, CostLedger())
    blanked = [without_image(problem, "zeros") for problem in problems[:3]]
    gold = [final_answer(group[0].text) for group in policy.answer(blanked, 1, Sampling(72, 0.0))]
    rows = [
        {"problem_id": p.problem_id, "question": p.question, "answer": answer, "kind": p.kind,
         "images": [encode_image(image) for image in p.images]}
        for p, answer in zip(problems, [*gold, IMPOSSIBLE, IMPOSSIBLE], strict=False)
    ]  # fmt: skip
    write_rows(tmp_path / "problems.parquet", PROBLEMS, rows)
    return ProblemSet(tmp_path / "problems.parquet")


def found_errors(base_vlm, reward, step, problems, *settings):
    recipe = load_recipe("digits", ["repair_rl.problems=null", *settings])
    policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=64), recipe.prompt, reward, CostLedger())
    return ErrorSource(recipe, policy, step, HeldOut([])).errors(problems)


def test_problems_that_need_no_image_are_dropped(base_vlm, math_reward, step, text_only_problems, tmp_path):
    drafts = found_errors(base_vlm, math_reward, step, text_only_problems, NEARLY_GREEDY)
    ids = text_only_problems.ids
    assert {draft.problem.problem_id for draft in drafts} == set(ids[3:])
    listed = [(row["problem_id"], row["reason"]) for row in step.tally.dropped_rows]
    assert listed == [(i, "text_only_solvable") for i in ids[:3]]
    assert step.tally.dropped["text_only_solvable"] == 3
    other = Step.open(tmp_path / "other", Plan("test", {}, 0, {}))
    everything = found_errors(base_vlm, math_reward, other, text_only_problems, NEARLY_GREEDY,
                              "repair_rl.text_only_tries=0")  # fmt: skip
    assert {draft.problem.problem_id for draft in everything} > set(ids[3:])


def test_problems_whose_errors_are_held_out_are_left_out(base_vlm, problems, step, text_only_problems):
    """By id, or by a picture under another id; what only asks the same of another picture stays."""
    first, second, third, fourth, _ = (text_only_problems[name] for name in text_only_problems.ids)
    renamed = replace(second, problem_id="held-out-1", question="Another question?")
    asks_the_same = replace(problems[7], problem_id="held-out-2", question=third.question)
    recipe = load_recipe("digits", ["repair_rl.problems=null", "repair_rl.text_only_tries=0"])
    policy = Answerer(TransformersEngine(base_vlm, rows_per_batch=64), recipe.prompt, ByTurns(0.0), CostLedger())
    drafts = ErrorSource(recipe, policy, step, HeldOut([first, renamed, asks_the_same])).errors(text_only_problems)
    assert {draft.problem.problem_id for draft in drafts} == set(text_only_problems.ids[2:])
    assert [(row["problem_id"], row["reason"]) for row in step.tally.dropped_rows] == [
        (first.problem_id, "held_out"), (second.problem_id, "held_out"),
    ]  # fmt: skip
    bare = replace(fourth, images=())
    assert HeldOut([replace(bare, problem_id="x")]).among([bare]) == {bare.problem_id}
    assert HeldOut([replace(bare, problem_id="x", question="Else?")]).among([bare]) == set()


def test_no_picture_is_looked_at_where_nothing_is_held_out(problems):
    unreadable = replace(problems[0], images=EncodedImages([{"bytes": b"no picture", "path": None}], "p"))
    assert HeldOut([]).among([unreadable]) == set()


def test_errors_alone_are_told_with_the_field_to_look_at(base_vlm, step, text_only_problems, caplog):
    found_errors(base_vlm, ByTurns(0.0), step, text_only_problems, "rollout.max_new_tokens=4")
    assert "no response is right" in caplog.text
    assert "raise rollout.max_new_tokens (4)" in caplog.text


@pytest.mark.parametrize("miss", [0.0, None])
def test_one_miss_without_the_image_keeps_a_problem(base_vlm, step, text_only_problems, miss):
    reward = ByTurns(1.0, 1.0, miss, 1.0)
    drafts = found_errors(base_vlm, reward, step, text_only_problems, "repair_rl.drafts_per_problem=4")
    assert step.tally.dropped["text_only_solvable"] == 0
    assert [draft.sample for draft in drafts] == ([2] * 5 if miss == 0.0 else [])
    assert step.tally.dropped["unscored"] == (0 if miss == 0.0 else 5)


RIGHT_OR_NOT = ("repair_rl.c1=false", "repair_rl.edit_penalty=0", "rollout.temperature=1.0", NO_AUDIT)


@pytest.mark.parametrize(("algorithm", "counted"), [("dapo", 4), ("grpo", 8)])
def test_dapo_drops_an_error_whose_repairs_have_equal_rewards(
    loop_of, base_vlm, repair_problems, monkeypatch, algorithm, counted
):
    """Four repairs of the first error all earn 1, of the second every other one."""
    reward = ByTurns(1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
    loop = loop_of(*RIGHT_OR_NOT, f"repair_rl.objective.algorithm={algorithm}", reward=reward)
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:2]]
    calls = []
    monkeypatch.setattr(loop.trainer, "step", lambda rows, _, totals: calls.append((rows, totals)) or {})
    loop.iterate(0, drafts)
    ((rows, totals),) = calls
    prompt = encode_prompt(base_vlm, loop.repairer.prompt(drafts[1]))
    assert [row.prompt.ids == prompt.ids for row in rows] == [True] * 4
    assert [row.advantage > 0 for row in rows] == [True, False, True, False]
    assert totals.num_sequences == counted


def test_an_overlong_buffer_lowers_the_advantage_of_long_repairs(loop_of, base_vlm, repair_problems, monkeypatch):
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:3]]

    def trained(*settings):
        loop = loop_of(*RIGHT_OR_NOT, "rollout.temperature=1.5", *settings, reward=ByTurns(1.0))
        kept = []
        monkeypatch.setattr(loop.trainer, "step", lambda rows, *_: kept.extend(rows) or {})
        loop.iterate(0, drafts)
        assert {row["repair_reward"] for row in loop.episodes} == {1.0}
        return kept

    assert trained() == []
    rows = trained("repair_rl.objective.overlong_buffer=72")
    assert len(rows) >= 4
    prompts = {tuple(row.prompt.ids) for row in rows}
    for prompt in prompts:
        group = sorted((len(row.ids), -row.advantage) for row in rows if tuple(row.prompt.ids) == prompt)
        assert [loss for _, loss in group] == sorted(loss for _, loss in group)
        assert group[0][1] < 0 < group[-1][1]


def test_ppo_trains_on_every_repair_that_has_a_reward(digits, base_dir, tmp_path, capsys):
    """The stage from end to end, as progress shows it: the value head lies beside the repair model, and the next one
    starts from it.
    """
    settings = ("repair_rl.objective.algorithm=ppo", "repair_rl.problems=12", "repair_rl.text_only_tries=0",
                "repair_rl.iterations=2", "repair_rl.errors_per_iteration=3", "repair_rl.errors_per_step=2",
                "repair_rl.repairs_per_error=2", "repair_rl.c1=false", "sft.heldout_share=0")  # fmt: skip
    recipe = load_recipe("digits", [*settings, NO_AUDIT])
    problems = digits / "problems_train.parquet"
    first, second = tmp_path / "first", tmp_path / "second"
    execute(RlRepair(recipe, problems, base_dir, base_dir), first)
    last = {row["metric"]: row["value"] for row in iterate_rows(first / "metrics.parquet", METRICS) if row["step"] == 4}
    *_, told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rl-repair: ")]
    shown = ("loss", "repair_reward", "kl_old/repair", "response_length")
    assert told.partition("; ")[2] == ", ".join(f"{name} {last[name]:.3g}" for name in shown)
    metrics = [row for row in iterate_rows(first / "metrics.parquet", METRICS) if row["metric"] == "value_loss"]
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    critic = load_file(first / CRITIC / "model.safetensors")
    assert critic["weight"].any()
    rewards = [
        row["repair_reward"] for row in iterate_rows(first / "episodes.parquet", EPISODES) if row["iteration"] == 0
    ]
    assert critic["center"].item() == pytest.approx(mean(reward for reward in rewards if reward is not None))
    execute(RlRepair(recipe, problems, base_dir, first), second)
    with safe_open(second / CRITIC / OPTIMIZER_STATE, framework="pt") as file:
        assert file.get_tensor("weight/step").item() == 8


class Shifted(TransformersEngine):
    """Tells log-probs that are half a nat lower than those of what it sampled."""

    def generate(self, requests, sampling):
        return [
            [replace(completion, logprobs=[value - 0.5 for value in completion.logprobs]) for completion in group]
            for group in super().generate(requests, sampling)
        ]


def test_every_step_tells_how_far_the_sampler_was_and_a_cap_weighs_by_it(loop_of, base_vlm, repair_problems):
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:4]]
    told = {}
    for name, settings in {"own": (), "off": (), "cap": ("repair_rl.objective.importance_cap=1.25",)}.items():
        loop = loop_of(*RIGHT_OR_NOT, "repair_rl.errors_per_step=2", *settings, reward=ByTurns(1.0, 0.0))
        vlm = loop.repairer.engine.vlm
        if name != "own":
            loop.repairer.engine = Shifted(vlm, rows_per_batch=64)
        loop.iterate(0, drafts)
        assert loop.trainer.steps_done == 2
        told[name] = {row["metric"]: row["value"] for row in loop.log.rows if row["step"] == 1}
        both = [row["metric"] for row in loop.log.rows if row["step"] == 2]
        assert {"mismatch_mean", "mismatch_max", "effective_sample_size"} <= set(both)
    assert told["own"]["mismatch_max"] < 1e-3
    assert told["own"]["effective_sample_size"] == pytest.approx(1, abs=1e-6)
    for name in ("off", "cap"):
        assert told[name]["mismatch_mean"] == pytest.approx(0.5, abs=1e-4)
        assert told[name]["mismatch_max"] == pytest.approx(0.5, abs=1e-3)
    # exp(0.5) is above the cap.
    assert told["off"]["grad_norm"] == pytest.approx(told["own"]["grad_norm"], rel=1e-5)
    assert told["cap"]["grad_norm"] == pytest.approx(1.25 * told["off"]["grad_norm"], rel=1e-3)


def gradient_of(loop, drafts, scale):
    """The loop's gradient and metrics at step 1, its model's output layer scaled before."""
    vlm = loop.repairer.engine.vlm
    with torch.no_grad():
        vlm.model.lm_head.weight.mul_(scale)
    loop.iterate(0, drafts)
    metrics = {row["metric"]: row["value"] for row in loop.log.rows if row["step"] == 1}
    return [p.grad.clone() for p in vlm.model.parameters() if p.grad is not None], metrics


def test_kl_pulls_towards_the_reference_once_the_weights_have_moved(loop_of, base_vlm, copy_of, repair_problems):
    drafts = [annotated_draft(base_vlm, problem) for problem in repair_problems[:4]]
    anchor = "repair_rl.objective.kl_coef=1.0"
    distances = {}
    for scale in (1.0, 0.8):
        free, metrics = gradient_of(loop_of(*RIGHT_OR_NOT, reward=ByTurns(1.0, 0.0)), drafts, scale)
        assert "kl_ref" not in metrics
        anchored, metrics = gradient_of(
            loop_of(*RIGHT_OR_NOT, anchor, reward=ByTurns(1.0, 0.0), reference=copy_of(base_vlm)), drafts, scale
        )
        distances[scale] = metrics["kl_ref"]
        largest = max((a - b).abs().max().item() for a, b in zip(anchored, free, strict=True))
        assert (largest > 1e-3) is (scale != 1.0)
    assert distances[1.0] == pytest.approx(0, abs=1e-6)
    assert distances[0.8] > 1e-3


def test_problems_without_images_skip_c1_and_the_text_only_filter(loop_of, base_vlm, repair_problems, step, tmp_path):
    """A reward of 1 for everything closes C1 and drops the problem, where there is an image or a video to take away."""
    seen, bare, moving = repair_problems[0], replace(repair_problems[1], images=()), repair_problems[2]
    moving = replace(moving, images=(), video=Video(moving.images * 2, 2.0, "p"))
    loop = loop_of("repair_rl.c1=true", NO_AUDIT, reward=ByTurns(1.0))
    loop.iterate(0, [annotated_draft(base_vlm, problem) for problem in (seen, bare, moving)])
    assert [row["gate_c1"] for row in loop.episodes] == [False] * 4 + [True] * 4 + [False] * 4
    assert loop.step.tally.counts["errors_gated_by_c1"] == 2
    _, counterfactuals = loop.repairer.engine.calls
    assert not any(np.asarray(frame).any() for frame in counterfactuals[-1].prompt.video.decoded())
    rows = [
        {"problem_id": p.problem_id, "question": p.question, "answer": p.answer, "kind": p.kind,
         "images": [encode_image(image) for image in p.images],
         "video": p.video and [encode_image(frame) for frame in p.video.frames]}
        for p in (seen, bare, moving)
    ]  # fmt: skip
    write_rows(tmp_path / "problems.parquet", PROBLEMS, rows)
    found_errors(base_vlm, ByTurns(1.0), step, ProblemSet(tmp_path / "problems.parquet"))
    assert {row["problem_id"] for row in step.tally.dropped_rows} == {seen.problem_id, moving.problem_id}


@pytest.mark.parametrize(("share", "dropped"), [(1.0, 0), (0.75, 5), (0.5, 5)])
def test_the_text_only_share_is_of_the_tries(base_vlm, step, text_only_problems, share, dropped):
    found_errors(base_vlm, ByTurns(1.0, 1.0, 0.0, 1.0), step, text_only_problems, f"repair_rl.text_only_share={share}")
    assert step.tally.dropped["text_only_solvable"] == dropped


def test_an_iteration_tells_of_the_repairs_that_it_scored(loop_of, base_vlm, repair_problems):
    """The second error's are equally good, the third's are but for one without a score, the fourth has none."""
    rewards = [[1.0, 0.0, 0.0, 1.0], [1.0] * 4, [0.0, None, 0.0, 0.0], [None] * 4]
    loop = loop_of(*RIGHT_OR_NOT, "rollout.max_new_tokens=34", reward=ByTurns(*[r for group in rewards for r in group]))
    loop.iterate(0, [annotated_draft(base_vlm, problem) for problem in repair_problems[:4]])
    (made,) = loop.repairer.engine.made
    scores = [row["reward"] for row in loop.episodes]
    scored = [c for c, score in zip((c for group in made for c in group), scores, strict=True) if score is not None]
    told = {row["metric"]: row["value"] for row in loop.log.rows}
    kept = [score for score in scores if score is not None]
    assert told["repair_reward"] == pytest.approx(sum(kept) / len(kept))
    assert told["repair_reward_std"] == pytest.approx(pstdev(kept))
    assert told["response_length"] == pytest.approx(mean(len(c.ids) for c in scored))
    assert told["cut_share"] == mean(c.finish_reason == "length" for c in scored)
    assert 0 < told["cut_share"] < 1
    assert told["groups_without_contrast"] == pytest.approx(2 / 3)


def episode(reward, gate_c1, flagged):
    attempt = SimpleNamespace(reward=reward, cost=0.5, ids=[1, 2], is_cut=False)
    return Episode(attempt, gate_c1, Verdict(flagged, "answer_pasted" if flagged else None), None)


def test_hit_rates_leave_out_what_was_not_measured():
    """Of C1 two errors of three (one is closed), of the audit three right repairs of five (one is flagged)."""
    groups = [
        [episode(1.0, None, False), episode(1.0, None, None)],
        [episode(1.0, False, True), episode(0.0, False, False)],
        [episode(1.0, True, False), episode(None, True, False)],
    ]
    measured = _summary(groups, 1.0)
    assert measured["c1_hit_rate"] == pytest.approx(1 / 2)
    assert measured["audit_hit_rate"] == pytest.approx(1 / 3)
    assert measured["accuracy"] == pytest.approx(4 / 5)
