"""Token credit of other papers, from rollouts over `df build-masks` to the gradient of a step."""

import math

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from stages.artifacts.columns import GROUPS, METRICS, ROLLOUTS
from stages.artifacts.manifests import read_manifest
from stages.artifacts.plan import Plan
from stages.artifacts.problems import Problem
from stages.artifacts.stage import execute
from stages.artifacts.step import Step
from stages.artifacts.store import iterate_rows, write_rows
from stages.core.objectives import OBJECTIVES
from stages.engines.protocol import ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import DataError, RecipeError
from stages.model.logprobs import ResponseLogprobs
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from stages.training.groups import optimization_group, rows_to_work_on
from stages.training.heldout import with_end
from stages.training.losses import PolicyObjective

SETTINGS = ("masks.repairer=sibling", "model.dtype=float32", "train.problems_per_step=2")
RIVALS = {
    "entropy": ["train.gate=entropy"],
    "perception": ["train.gate=perception"],
    "answer_gap": ["train.advantage=answer_gap", "train.gate=none"],
}
COLUMNS = {"entropy": "entropies", "perception": "image_kls", "answer_gap": "answer_gaps"}


def recipe_of(rival, *settings):
    return load_recipe("digits", [*SETTINGS, *RIVALS.get(rival, [rival]), *settings])


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory, base_vlm, repair_problems):
    """Of each of four problems a wrong answer, twice the right one, and a wrong one of another problem."""
    folder = tmp_path_factory.mktemp("rollouts")
    rows = []
    for problem, other in zip(repair_problems[:4], repair_problems[4:8], strict=True):
        texts = [(problem.extra["error"], 0.0), *[(problem.extra["repair"], 1.0)] * 2, (other.extra["error"], 0.0)]
        for sample, (text, reward) in enumerate(texts):
            ids = with_end(base_vlm, text)
            rows.append(
                {"problem_id": problem.problem_id, "sample": sample, "text": text, "reward": reward, "ids": ids,
                 "sampler_logprobs": [-1.0] * len(ids), "finish_reason": "stop"}
            )  # fmt: skip
    write_rows(folder / f"{ROLLOUTS.name}-00000.parquet", ROLLOUTS, rows)
    return folder


@pytest.fixture(scope="module")
def groups_of(tmp_path_factory, rollouts, digits, base_dir):
    """A function: the groups that `df build-masks` makes for a rival, or under these settings."""
    made = {}

    def make(rival):
        if rival not in made:
            made[rival] = tmp_path_factory.mktemp("groups") / "out"
            stage = BuildMasks(recipe_of(rival), rollouts, digits / "repair_set.parquet", None, base_dir)
            execute(stage, made[rival])
        return made[rival]

    return make


@pytest.fixture
def steps_of(groups_of, digits, base_dir, base_vlm, tmp_path):
    """A function: the rows of each optimizer step."""

    def make(rival, *settings):
        stage = TrainPolicy(recipe_of(rival, *settings), groups_of(rival), digits / "repair_set.parquet", base_dir)
        step = Step.open(tmp_path / "source", Plan("test", {}, 0, {}), overwrite=True)
        source = stage.source(base_vlm, step)
        return [source.training_rows(groups) for groups in source.batches()]

    return make


def rows_of(folder):
    return list(iterate_rows(folder, GROUPS))


@pytest.mark.parametrize("rival", RIVALS)
def test_only_the_groups_of_a_recipe_that_asks_have_scores(groups_of, rival):
    plain, asked = groups_of("train.gate=difference"), groups_of(rival)
    without = [{name: row[name] for name in row if name not in COLUMNS.values()} for row in rows_of(asked)]
    assert without == [{name: row[name] for name in without[0]} for row in rows_of(plain)]
    for folder, found in ((plain, set()), (asked, {COLUMNS[rival]})):
        names = pq.read_schema(folder / f"{GROUPS.name}-00000.parquet").names
        assert set(COLUMNS.values()) & set(names) == found
        assert read_manifest(folder)["recipe"].get("scores") == next(iter(found), None)
    for row in rows_of(asked):
        scores = row[COLUMNS[rival]]
        assert scores is None if row["role"] == "repair" else len(scores) == len(row["ids"])


@pytest.mark.parametrize("rival", RIVALS)
def test_scores_are_the_policy_s_at_the_rollout_temperature(groups_of, base_vlm, repair_problems, rival):
    """Each against `score` of its own prompt alone: with the image, blanked by hand, or with the answer behind it."""
    recipe, engine = recipe_of(rival), TransformersEngine(base_vlm)
    problems = {problem.problem_id: problem for problem in repair_problems}

    def score(problem, row, question="{}", against=None):
        def prompt(question, images):
            return policy_prompt(base_vlm.processor, recipe.prompt, Problem.asking(question, images))

        own = prompt(question.format(problem.question), problem.images)
        request = ScoreRequest(own, row["ids"], against and prompt(problem.question, against))
        return engine.score([request], temperature=recipe.rollout.temperature)[0]

    for row in [row for row in rows_of(groups_of(rival)) if row["role"] != "repair"][::3]:
        problem = problems[row["problem_id"]]
        if rival == "entropy":
            expected = score(problem, row).entropies
        elif rival == "perception":
            expected = score(problem, row, against=[Image.new("RGB", problem.images[0].size)]).divergences
            assert max(expected) > 0.1
        else:
            shown = score(problem, row, f"{{}}\nThe right answer is {problem.answer}.").logprobs
            expected = [with_it - own for with_it, own in zip(shown, score(problem, row).logprobs, strict=True)]
            assert max(map(abs, expected)) > 0.01
        assert row[COLUMNS[rival]] == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_plan_names_what_decides_the_scores_and_no_more(rollouts, digits, base_dir):
    def sections(*settings):
        recipe = load_recipe("digits", [*SETTINGS, *settings])
        return BuildMasks(recipe, rollouts, digits / "repair_set.parquet", None, base_dir).declared.recipe

    plain = sections("train.gate=difference")
    assert sections("train.gate=none") == sections("train.gate=soft", "repair_rl.blank=noise") == plain
    assert sections("train.gate=entropy", "repair_rl.blank=noise") == plain | {"scores": "entropies"}
    shown = {"reference_instruction": load_recipe("digits").prompt.reference_instruction}
    assert sections(*RIVALS["answer_gap"]) == plain | {"scores": "answer_gaps", "prompt": plain["prompt"] | shown}
    assert sections("train.gate=perception", "repair_rl.blank=noise") == plain | {
        "scores": "image_kls", "repair_rl": {"blank": "noise"}
    }  # fmt: skip


def test_options_that_are_off_stand_in_no_plan(rollouts, digits, base_dir):
    """So that outputs from before there were any stay up to date."""

    def section(*settings):
        recipe = load_recipe("digits", [*SETTINGS, *settings])
        return TrainPolicy(recipe, rollouts, digits / "repair_set.parquet", base_dir).declared.recipe["train"]

    plain = section("train.answer_gap_weight=0.25")
    assert {"leak", "evenness", "support", "answer_gap_weight"}.isdisjoint(plain)
    assert section("train.leak=0.25") == plain | {"leak": 0.25}
    asked = section(*RIVALS["answer_gap"])
    assert asked == plain | {"answer_gap_weight": 0.5, "advantage": "answer_gap", "gate": "none"}


def test_entropy_opens_a_fifth_of_a_step_s_tokens(groups_of, steps_of):
    """Against a sort of all of them; single responses have more or less."""
    rollouts = [row for row in rows_of(groups_of("entropy")) if row["role"] != "repair"]
    entropies = {(*row["ids"], *row["old_logprobs"]): row["entropies"] for row in rollouts}
    steps, shares = steps_of("entropy"), set()
    assert [len(rows) for rows in steps] == [8, 8]
    for rows in steps:
        values = [entropies[*row.ids, *row.old_logprobs_T] for row in rows]
        tokens = sorted((value for value_T in values for value in value_T), reverse=True)
        last = tokens[math.ceil(len(tokens) / 5) - 1]
        assert [row.gate_T for row in rows] == [[float(value >= last) for value in value_T] for value_T in values]
        shares |= {round(sum(row.gate_T) / len(row.ids), 3) for row in rows}
    assert len(shares) > 1


def test_perception_opens_two_fifths_of_each_response(steps_of):
    for rows in steps_of("perception"):
        assert {row.role for row in rows} == {"correct", "error"}
        for row in rows:
            assert set(row.gate_T) == {0.0, 1.0}
            assert sum(row.gate_T) == math.ceil(2 * len(row.ids) / 5)


def test_answer_gap_weighs_each_token_within_its_bounds(groups_of, steps_of):
    gaps = {(*row["ids"], *row["old_logprobs"]): row["answer_gaps"] for row in rows_of(groups_of("answer_gap"))
            if row["role"] != "repair"}  # fmt: skip
    for row in steps_of("answer_gap", "train.answer_gap_weight=0.8")[0]:
        assert set(row.gate_T) == {1.0}
        sign = 1 if row.role == "correct" else -1
        assert row.advantage * sign > 0
        expected = [
            row.advantage * (0.2 + 0.8 * min(max(math.exp(sign * gap), 0.8), 1.2))
            for gap in gaps[*row.ids, *row.old_logprobs_T]
        ]
        assert row.advantage_T == pytest.approx(expected)
        assert len({round(value, 6) for value in expected}) > 2


@pytest.mark.parametrize("rival", ["entropy", "perception"])
def test_a_leak_takes_the_place_of_a_rival_s_zeros(steps_of, rival):
    closed, leaky = steps_of(rival), steps_of(rival, "train.leak=0.125")
    for rows, others in zip(closed, leaky, strict=True):
        for row, other in zip(rows, others, strict=True):
            assert other.gate_T == [gate or 0.125 for gate in row.gate_T]


@pytest.mark.parametrize("rival", RIVALS)
def test_a_token_that_is_gated_out_has_no_gradient_and_others_have_one(steps_of, rival):
    """Under every algorithm, with the sequence ratios too; denominators are those of all tokens."""
    rows = steps_of(rival)[0]
    for algorithm in sorted(OBJECTIVES.keys() - {"ppo"}):
        recipe = recipe_of("train.gate=none", f"train.objective.algorithm={algorithm}")
        work, totals = rows_to_work_on(rows, recipe.train.objective)
        assert totals == (len(rows), sum(len(row.ids) for row in rows))
        mask_BT = torch.zeros(len(work), max(len(row.ids) for row in work), dtype=torch.bool)
        logprobs_BT = torch.zeros(mask_BT.shape)
        for place, row in enumerate(work):
            mask_BT[place, : len(row.ids)] = True
            logprobs_BT[place, : len(row.ids)] = torch.tensor(row.old_logprobs_T)
        logprobs_BT.requires_grad_()
        zeros_BT = torch.zeros(mask_BT.shape)
        objective = PolicyObjective(recipe.train.objective, recipe.rollout)
        loss, _ = objective(work, ResponseLogprobs(logprobs_BT, zeros_BT, zeros_BT, mask_BT), None, totals)
        loss.backward()
        for row, grad_T in zip(work, logprobs_BT.grad, strict=True):
            assert [grad != 0 for grad in grad_T[: len(row.ids)].tolist()] == [gate != 0 for gate in row.gate_T]


@pytest.mark.parametrize("rival", RIVALS)
def test_train_policy_takes_a_rival_s_groups(groups_of, digits, base_dir, tmp_path, rival):
    stage = TrainPolicy(recipe_of(rival), groups_of(rival), digits / "repair_set.parquet", base_dir)
    execute(stage, tmp_path / "out")
    told = {(row["metric"], row["step"]): row["value"] for row in iterate_rows(tmp_path / "out", METRICS)}
    assert {metric.partition("/")[2] for metric, _ in told} >= {"correct", "error"}
    assert not any("repair" in metric for metric, _ in told)
    assert all(told["grad_norm", step] > 0 == told["skipped", step] for step in (1, 2))


@pytest.mark.parametrize("rival", RIVALS)
def test_groups_without_the_scores_are_refused_in_a_line(groups_of, digits, base_dir, rival):
    stage = TrainPolicy(recipe_of(rival), groups_of("train.gate=difference"), digits / "repair_set.parquet", base_dir)
    told = (
        rf"rollouts without {COLUMNS[rival]}, which {RIVALS[rival][0].replace('=', ' ')} is made of; run df build-masks"
    )
    with pytest.raises(DataError, match=told) as error:
        stage.plan()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ["train.gate=entropy", "train.group=all"],
            "group is all, but gate is entropy, which takes the rollouts alone",
        ),
        (["train.gate=perception", "train.group=all"], "group is all, but gate is perception, which"),
        (["train.advantage=answer_gap"], "advantage is answer_gap, but gate is difference: .* set gate=none"),
        (["train.advantage=answer_gap", "train.gate=entropy"], "advantage is answer_gap, but gate is entropy"),
        (
            ["train.advantage=answer_gap", "train.gate=none", "train.objective.algorithm=ppo"],
            "advantage is answer_gap, which ppo has no use for; set objective.algorithm=grpo",
        ),
        (["train.gate=entropy", "train.objective.algorithm=dpo"], "gate is entropy, .*algorithm is dpo"),
    ],
)
def test_what_contradicts_itself_is_refused_in_a_line(settings, told):
    with pytest.raises(RecipeError, match=told) as error:
        load_recipe("digits", settings)
    assert "\n" not in str(error.value)


def row(role, reward, length, **scores):
    return {"role": role, "reward": reward, "mask": [False] * length, "in_pair": role != "correct",
            "ids": list(range(length))} | scores  # fmt: skip


@pytest.mark.parametrize(
    ("rival", "algorithm"), [*((rival, "grpo") for rival in RIVALS), ("entropy", "ppo"), ("perception", "ppo")]
)
def test_a_rival_trains_on_the_whole_rollout_group(rival, algorithm):
    """PPO too, where problems without a right answer need no repair then."""
    recipe = recipe_of(rival, f"train.objective.algorithm={algorithm}", "masks.on_no_correct=skip")
    rows = [row(role, reward, 3, **{COLUMNS[rival]: [0.5, 0.1, 0.2]})
            for role, reward in (("correct", 1.0), ("error", 0.0), ("repair", 1.0), ("error", 0.0))]  # fmt: skip
    found = optimization_group(rows, recipe.train, recipe.rollout)
    assert [t.row for t in found] == [rows[0], rows[1], rows[3]]
    plain = optimization_group(rows, load_recipe("digits", [
        "train.gate=none", f"train.objective.algorithm={algorithm}"]).train, recipe.rollout)  # fmt: skip
    assert [t.advantage for t in found] == [t.advantage for t in plain]
