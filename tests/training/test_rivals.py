"""Token credit of other papers, from rollouts over `df build-masks` to the gradient of a step."""

import math

import pyarrow.parquet as pq
import pytest
import torch

from stages.artifacts.columns import GROUPS, METRICS, ROLLOUTS
from stages.artifacts.notes import read_manifest
from stages.artifacts.plan import Plan
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
from stages.s5_train_policy import GroupSource, TrainPolicy
from stages.training.groups import optimization_group, rows_to_work_on
from stages.training.heldout import with_end
from stages.training.losses import PolicyObjective

SETTINGS = ("masks.repairer=sibling", "model.dtype=float32", "train.problems_per_step=2")
RIVALS = {"entropy": ["train.gate=entropy"]}
COLUMNS = {"entropy": "entropies"}


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
        source = GroupSource(stage, base_vlm, step)
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


def test_entropies_are_those_of_the_policy_at_the_rollout_temperature(groups_of, base_vlm, repair_problems):
    recipe, engine = recipe_of("entropy"), TransformersEngine(base_vlm)
    problems = {problem.problem_id: problem for problem in repair_problems}
    rows = [row for row in rows_of(groups_of("entropy")) if row["role"] != "repair"]
    prompts = [
        policy_prompt(base_vlm.processor, recipe.prompt, p.question, p.images)
        for p in (problems[row["problem_id"]] for row in rows)
    ]
    requests = [ScoreRequest(prompt, row["ids"]) for prompt, row in zip(prompts, rows, strict=True)]
    for row, scores in zip(rows, engine.score(requests, temperature=recipe.rollout.temperature), strict=True):
        assert row["entropies"] == pytest.approx(scores.entropies, abs=1e-4)


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


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
@pytest.mark.parametrize("rival", RIVALS)
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
