"""`df train-policy` on small groups: order, passes, counts by reason, denominators, and what carries over."""

import json
import math
import re
from itertools import accumulate, count, islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from stages.artifacts.columns import GROUPS, METRICS, OLD_LOGPROBS, VALUES
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import iterate_rows, write_rows
from stages.engines.protocol import ScoreRequest
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import DataError
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s5_train_policy import TrainPolicy
from stages.training.critic import CRITIC
from stages.training.groups import rows_to_work_on
from stages.training.heldout import with_end
from stages.training.trainer import MACHINE_METRICS, OPTIMIZER_STATE


@pytest.fixture(scope="module")
def trajectories(base_vlm, repair_problems, recipe):
    """Of each of twelve problems its wrong and its right response, with the base policy's log-probs."""
    engine = TransformersEngine(base_vlm, rows_per_batch=64)
    chosen = repair_problems[:12]
    prompts = [policy_prompt(base_vlm.processor, recipe.prompt, p) for p in chosen]
    ids = [[with_end(base_vlm, problem.extra[side]) for side in ("error", "repair")] for problem in chosen]
    requests = [ScoreRequest(prompt, own) for prompt, pair in zip(prompts, ids, strict=True) for own in pair]
    scores = iter(engine.score(requests, temperature=recipe.rollout.temperature))
    return [
        (problem.problem_id, [(own, next(scores).logprobs) for own in pair])
        for problem, pair in zip(chosen, ids, strict=True)
    ]


def row(problem_id, trajectory, role, reward, *, in_pair):
    ids, logprobs = trajectory
    return {
        "problem_id": problem_id,
        "sample": 0,
        "role": role,
        "in_pair": in_pair,
        "ids": ids,
        "reward": reward,
        "mask": [in_pair] * len(ids),
        "old_logprobs": logprobs,
        "finish_reason": "stop",
    }


def pair(trajectory):
    name, (error, repair) = trajectory
    return [row(name, error, "error", 0.0, in_pair=True), row(name, repair, "repair", 1.0, in_pair=True)]


def half_marked(trajectory):
    return [row | {"mask": [token % 2 == 0 for token in range(len(row["ids"]))]} for row in pair(trajectory)]


def all_correct(trajectory):
    name, (_, right) = trajectory
    return [row(name, right, "correct", 1.0, in_pair=False)] * 2


def unrepaired(trajectory):
    name, (error, right) = trajectory
    return [row(name, error, "error", 0.0, in_pair=False), row(name, right, "correct", 1.0, in_pair=False)]


def ungated(trajectory):
    """Kept without a repair: every reward is 0."""
    name, (error, _) = trajectory
    return [row(name, error, "error", 0.0, in_pair=True)] * 2


def numbered(rows):
    """Each rollout with a sample number of its own, a repair with its error's."""
    rollouts = accumulate(row["role"] != "repair" for row in rows)
    return [row | {"sample": number - 1} for row, number in zip(rows, rollouts, strict=True)]


@pytest.fixture
def stage_of(tmp_path, digits, base_dir):
    """A function: the stage on these groups, a list of shards of problems of rows."""

    def make(shards, *settings, policy=base_dir, budget=None, seed=0):
        folder = tmp_path / "groups"
        folder.mkdir(exist_ok=True)
        for index, problems in enumerate(shards):
            rows = [row for problem in problems for row in numbered(problem)]
            write_rows(folder / f"{GROUPS.name}-{index:05d}.parquet", GROUPS, rows)
        recipe = load_recipe("digits", ["train.problems_per_step=2", *settings, f"seed={seed}"])
        return TrainPolicy(recipe, folder, digits / "repair_set.parquet", policy, budget_device_seconds=budget)

    return make


@pytest.fixture
def source_of(stage_of, base_vlm, tmp_path):
    """A function: what the stage reads groups with; its step is `source.step`."""

    def make(shards, *settings, **options):
        stage = stage_of(shards, *settings, **options)
        return stage.source(base_vlm, Step.open(tmp_path / "source", Plan("test", {}, 0, {}), overwrite=True))

    return make


def metric_rows(out):
    return list(iterate_rows(out / f"{METRICS.name}.parquet", METRICS))


def metrics_of(out, name):
    return {row["step"]: row["value"] for row in metric_rows(out) if row["metric"] == name}


def names(batches):
    return [[group.rows[0]["problem_id"] for group in batch] for batch in batches]


def flat(batches):
    return [name for batch in names(batches) for name in batch]


MIXED = (pair, all_correct, unrepaired, ungated)
SKIPPED = {"all_correct": 1, "no_repaired_error": 1}


@pytest.mark.parametrize(
    ("settings", "dropped", "equal", "used"),
    [
        ([], SKIPPED, 1, 2),
        (["train.objective.algorithm=dapo"], SKIPPED | {"dynamic_sampling": 1}, 0, 1),
        (["train.gate=none"], {}, 2, 4),
        (["train.gate=none", "train.objective.algorithm=dapo"], {"dynamic_sampling": 2}, 0, 2),
        (["train.group=all"], {}, 2, 4),
        (["train.group=all", "train.objective.algorithm=dapo"], {"dynamic_sampling": 2}, 0, 2),
    ],
)
def test_what_is_not_trained_on_is_counted_by_reason(stage_of, trajectories, tmp_path, settings, dropped, equal, used):
    groups = [make(trajectory) for make, trajectory in zip(MIXED, trajectories, strict=False)]
    if "train.gate=none" in settings:
        groups[0] = [*groups[0], *all_correct(trajectories[0])]
    manifest = execute(stage_of([groups], "train.epochs=2", *settings), tmp_path / "out").manifest
    assert (manifest["rows_in"], manifest["rows_out"]) == (4, used)
    assert {reason: count for reason, count in manifest["dropped"].items() if count} == dropped
    assert manifest["counts"]["groups_of_equal_rewards"] == equal


@pytest.mark.parametrize(
    ("make", "other"), [(unrepaired, "train.gate=none"), (half_marked, "train.group=pairs")], ids=["ungated", "paper"]
)
def test_the_group_of_all_trains_as_its_limits_do(stage_of, trajectories, tmp_path, make, other):
    """Without a repair as the plain algorithm, without a correct rollout as the paper's: to the last bit."""
    groups = [[make(trajectory) for trajectory in trajectories[:4]]]
    outs = [tmp_path / "all", tmp_path / "limit"]
    for out, setting in zip(outs, ["train.group=all", other], strict=True):
        execute(stage_of(groups, setting), out)
    found, limit = ([row for row in metric_rows(out) if row["metric"] not in MACHINE_METRICS] for out in outs)
    assert found == limit
    assert {row["step"] for row in found if row["metric"] == "grad_norm" and row["value"] > 0} == {1, 2}
    weights, same = (load_model(out / "model").model.state_dict() for out in outs)
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_the_group_of_all_trains_on_what_the_paper_s_leaves_out(stage_of, trajectories, tmp_path):
    """The density of errors' gates is that of a half-marked one among whole ones."""
    groups = [half_marked(trajectories[0]) + unrepaired(trajectories[0]), unrepaired(trajectories[1])]
    execute(stage_of([groups], "train.group=all"), tmp_path / "out")
    errors = [row for group in groups for row in group if row["role"] == "error"]
    opened = [sum(row["mask"]) if row["in_pair"] else len(row["ids"]) for row in errors]
    (density,) = metrics_of(tmp_path / "out", "gate_density/error").values()
    assert density == pytest.approx(sum(opened) / sum(len(row["ids"]) for row in errors))
    assert density < 1
    assert metrics_of(tmp_path / "out", "gate_density/correct") == {1: 1}


@pytest.mark.parametrize("gate", ["difference", "none"])
def test_dpo_trains_on_pairs_alone(stage_of, trajectories, tmp_path, gate):
    """Ungated errors are counted; in the second pass the margins have grown from 0, the rounding of a ratio of 1."""
    groups = [make(trajectory) for make, trajectory in zip(MIXED, trajectories, strict=False)]
    groups[0] = [*groups[0], *ungated(trajectories[0]), *all_correct(trajectories[0])]
    settings = ["train.objective.algorithm=dpo", f"train.gate={gate}", "train.epochs=2"]
    manifest = execute(stage_of([groups], *settings), tmp_path / "out").manifest
    assert (manifest["rows_in"], manifest["rows_out"]) == (4, 1)
    assert {reason: count for reason, count in manifest["dropped"].items() if count} == {
        "all_correct": 1, "no_repaired_error": 2,
    }  # fmt: skip
    assert manifest["counts"]["ungated_errors_without_pair"] == 2 + 2
    loss, margin = metrics_of(tmp_path / "out", "loss"), metrics_of(tmp_path / "out", "reward_margin")
    assert loss[1] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(margin[1]) < 1e-4
    assert margin[2] > 10 * abs(margin[1])
    assert loss[2] < loss[1]
    assert metrics_of(tmp_path / "out", "preference_accuracy")[2] == 1
    up, down = (metrics_of(tmp_path / "out", f"log_ratio/{role}")[2] for role in ("repair", "error"))
    assert margin[2] == pytest.approx(0.1 * (up - down))


def test_dpo_s_beta_scales_the_margin(stage_of, trajectories, tmp_path):
    for beta in (0.1, 0.5):
        settings = ["train.objective.algorithm=dpo", f"train.objective.beta={beta}", "train.epochs=2"]
        execute(stage_of([[pair(trajectories[0])]], *settings), tmp_path / str(beta))
    small, large = (metrics_of(tmp_path / str(beta), "reward_margin")[2] for beta in (0.1, 0.5))
    assert large > 2 * small > 0


def cut(row):
    """A rollout three tokens before its end, at which it would have been worth a quarter."""
    kept = {name: row[name][:-3] for name in ("ids", "mask", "old_logprobs")}
    return row | kept | {"finish_reason": "length", "reward": row["reward"] / 4}


def rollouts_of(folder, problem_ids):
    """A table of what the policy sampled for these problems, by the files alone."""
    table = pa.concat_tables(pq.read_table(file) for file in folder.glob("*.parquet"))
    ours = pc.and_(pc.is_in(table["problem_id"], pa.array(problem_ids)), pc.not_equal(table["role"], "repair"))
    return table.filter(ours)


@pytest.mark.parametrize(
    ("settings", "equal"),
    [
        ([], {"mixed": False, "pair": False, "wrong": True}),
        (["train.group=all"], {"mixed": False, "pair": False, "wrong": True, "right": True}),
        (["train.gate=none"], {"mixed": False, "pair": False, "wrong": True, "right": True}),
        (
            ["train.gate=none", "train.objective.overlong_buffer=72"],
            {"mixed": False, "pair": False, "wrong": False, "right": True},
        ),
        (["train.gate=none", "train.objective.algorithm=dapo"], {"mixed": False, "pair": False}),
        (["train.objective.algorithm=dpo"], {"mixed": False, "pair": False}),
    ],
    ids=["pairs", "all", "ungated", "penalised", "dapo", "dpo"],
)
def test_every_step_tells_what_the_policy_sampled(stage_of, source_of, trajectories, tmp_path, settings, equal):
    """For its problems, what is not trained on too; which of their groups have equal rewards is told by hand."""
    mixed, paired, wrong, right = trajectories[:4]
    groups = [
        [*pair(mixed), *all_correct(mixed), cut(all_correct(mixed)[0])],
        [*pair(paired), all_correct(paired)[0]],
        [*ungated(wrong), cut(ungated(wrong)[0])],
        all_correct(right),
    ]
    kinds = dict(zip([problem_id for problem_id, _ in trajectories], ("mixed", "pair", "wrong", "right"), strict=False))
    shards = [groups[:2], groups[2:]]
    execute(stage_of(shards, *settings), tmp_path / "out")
    steps = names(source_of(shards, *settings).batches())
    assert sorted(kinds[problem] for step in steps for problem in step) == sorted(equal)
    for number, problems in enumerate(steps, start=1):
        rollouts = rollouts_of(tmp_path / "groups", problems)
        told = {row["metric"]: row["value"] for row in metric_rows(tmp_path / "out") if row["step"] == number}
        assert told["reward_mean"] == pytest.approx(pc.mean(rollouts["reward"]).as_py())
        assert told["reward_std"] == pytest.approx(pc.stddev(rollouts["reward"]).as_py())
        assert told["response_length"] == pytest.approx(pc.mean(pc.list_value_length(rollouts["ids"])).as_py())
        assert told["cut_share"] == rollouts["finish_reason"].to_pylist().count("length") / len(rollouts)
        assert told["groups_without_contrast"] == sum(equal[kinds[problem]] for problem in problems) / len(problems)


@pytest.mark.parametrize(
    ("last", "steps"), [(pair, [1, 2, 3, 3]), (all_correct, [1, 2, 2])], ids=["paired", "left out"]
)
def test_progress_shows_each_step(stage_of, source_of, trajectories, tmp_path, capsys, monkeypatch, last, steps):
    """Two problems of two rows a step; the last problem of the order makes a step, or is left out after all steps."""
    monkeypatch.setattr("stages.runtime.progress.INTERVAL_S", 0)
    *_, name = flat(source_of([[pair(t) for t in trajectories[:5]]]).batches())
    groups = [last(t) if t[0] == name else pair(t) for t in trajectories[:5]]
    execute(stage_of([groups], "train.objective.kl_coef=0.1"), tmp_path / "out")
    shown = ("loss", "reward_mean", "kl_ref", "kl_old/error", "kl_old/repair", "response_length")
    told = [metrics_of(tmp_path / "out", name) for name in shown]
    words = [", ".join(f"{name} {of[step]:.3g}" for name, of in zip(shown, told, strict=True)) for step in steps]
    lines = [line for line in capsys.readouterr().err.splitlines() if re.match(r"train-policy: \d", line)]
    assert [line.partition("; ")[2] for line in lines] == words
    assert [line.split()[1] for line in lines] == ["4/10", "8/10", "10/10", "10/10"][: len(steps)]


@pytest.mark.parametrize(("algorithm", "sequences"), [("grpo", 4), ("gspo", 4), ("dapo", 2)])
def test_groups_of_equal_rewards_stay_in_the_denominators_but_leave_dapo_s(
    source_of, trajectories, algorithm, sequences
):
    groups = [pair(trajectories[0]), ungated(trajectories[1])]
    source = source_of([groups], f"train.objective.algorithm={algorithm}")
    (batch,) = source.batches()
    working, totals = rows_to_work_on(source.training_rows(batch), source.recipe.train.objective)
    assert sorted(row.role for row in working) == ["error", "repair"]
    counted = [row for group in groups for row in group][:sequences]
    assert totals == (sequences, sum(len(row["ids"]) for row in counted))


def test_epochs_pass_over_every_group_in_another_order(source_of, trajectories):
    source = source_of([[pair(t) for t in trajectories[:6]]], "train.epochs=3", "train.problems_per_step=4")
    batches = list(source.batches())
    assert [len(batch) for batch in batches] == [4, 2] * 3
    passes = [flat(batches[start : start + 2]) for start in (0, 2, 4)]
    assert {tuple(sorted(order)) for order in passes} == {tuple(sorted(name for name, _ in trajectories[:6]))}
    assert len({tuple(order) for order in passes}) == 3
    assert source.step.tally.rows_in == source.step.tally.rows_out == 6
    assert source.rows_read == 3 * 12


def test_the_order_is_a_seeded_permutation_shard_by_shard(source_of, trajectories):
    shards = [[pair(t) for t in trajectories[start : start + 4]] for start in (0, 4, 8)]
    order = flat(source_of(shards).batches())
    assert sorted(order) == sorted(name for name, _ in trajectories)
    shard_of = {name: index // 4 for index, (name, _) in enumerate(trajectories)}
    visited = [shard_of[name] for name in order]
    assert [visited[start : start + 4] for start in (0, 4, 8)] == [[visited[start]] * 4 for start in (0, 4, 8)]
    assert flat(source_of(shards).batches()) == order
    others = [flat(source_of(shards, seed=seed).batches()) for seed in range(1, 6)]
    assert all(other != order for other in others)
    assert len({shard_of[other[0]] for other in others}) > 1


def test_with_a_budget_there_is_no_end_of_passes(source_of, trajectories):
    source = source_of([[pair(t) for t in trajectories[:4]]], "train.epochs=1", budget=5.0)
    seen = list(islice(source.batches(), 5))
    assert sorted(flat(seen[:2])) == sorted(flat(seen[2:4]))
    assert source.step.tally.rows_in == 4


def test_a_budget_ends_a_pass_from_which_nothing_can_be_learned(source_of, trajectories):
    source = source_of([[ungated(t) for t in trajectories[:4]]], budget=1e9)
    assert len(list(source.batches())) == 2


def test_a_spent_budget_ends_the_training_whatever_the_epochs(stage_of, trajectories, tmp_path, monkeypatch):
    """By a clock that counts how often it is read, so that both trainings take as long up to the first step."""
    monkeypatch.setattr("stages.artifacts.stage.cpu_seconds", count().__next__)
    groups = [[pair(t) for t in trajectories[:2]]]
    one = execute(stage_of(groups, "train.epochs=1"), tmp_path / "one").manifest
    budget = 2 * sum(one["device_seconds"].values())
    manifest = execute(stage_of(groups, "train.epochs=1", budget=budget), tmp_path / "budget").manifest
    assert len(metrics_of(tmp_path / "one", "loss")) == 1
    assert len(metrics_of(tmp_path / "budget", "loss")) > 1
    assert manifest["recipe"]["budget_device_seconds"] == budget
    assert sum(manifest["device_seconds"].values()) >= budget


def test_a_budget_too_small_for_a_step_says_so(stage_of, trajectories, tmp_path):
    stage = stage_of([[pair(trajectories[0])]], budget=0.0)
    with pytest.raises(DataError, match="raise --budget-device-seconds"):
        execute(stage, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_nothing_to_train_on_names_the_reasons(stage_of, trajectories, tmp_path):
    stage = stage_of([[all_correct(trajectories[0]), unrepaired(trajectories[1])]])
    with pytest.raises(DataError, match=r"no group has anything to train on .*all_correct 1.*rollout\.samples_per"):
        execute(stage, tmp_path / "out")


def test_equal_rewards_alone_leave_the_policy_as_it_was(stage_of, trajectories, base_vlm, tmp_path):
    execute(stage_of([[ungated(t) for t in trajectories[:2]]]), tmp_path / "out")
    trained = load_model(tmp_path / "out" / "model").model
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), base_vlm.model.parameters(), strict=True))


def test_the_optimizer_goes_on_from_one_output_to_the_next(stage_of, trajectories, tmp_path):
    groups = [[pair(t) for t in trajectories[:4]]]
    first, second = tmp_path / "first", tmp_path / "second"
    execute(stage_of(groups, "train.optimizer.warmup_steps=8"), first)
    execute(stage_of(groups, "train.optimizer.warmup_steps=8", policy=first), second)
    peak = load_recipe("digits").train.optimizer.learning_rate
    assert metrics_of(first, "learning_rate") == pytest.approx({1: peak / 8, 2: peak / 4})
    assert metrics_of(second, "learning_rate") == pytest.approx({3: peak * 3 / 8, 4: peak / 2})
    moments = {}
    for out, steps in ((first, 2), (second, 4)):
        with safe_open(out / OPTIMIZER_STATE, framework="pt") as file:
            assert file.metadata()["steps_done"] == str(steps)
            name = next(name for name in file.keys() if name.endswith("exp_avg_sq"))  # noqa: SIM118
            moments[steps] = file.get_tensor(name)
            assert file.get_tensor(name.removesuffix("exp_avg_sq") + "step").item() == steps
    assert not torch.equal(moments[2], moments[4])


def sampled_by(group, delta):
    """The group as an engine sampled it whose log-probs are `delta` lower; a repair has none.

    All are one lower than they were: none may be above 0.
    """
    rows = [row | {"old_logprobs": [old - 1 for old in row["old_logprobs"]]} for row in group]
    return [
        row if row["role"] == "repair" else row | {"sampler_logprobs": [old - delta for old in row["old_logprobs"]]}
        for row in rows
    ]


def mismatch_of(out):
    return [metrics_of(out, name) for name in ("mismatch_mean", "mismatch_max", "effective_sample_size")]


@pytest.mark.parametrize("algorithm", ["grpo", "dpo"])
def test_every_step_tells_how_far_the_sampler_was(stage_of, trajectories, tmp_path, algorithm):
    """The second pass too, by the log-probs of the weights that sampled; groups of an older release tell nothing."""
    groups = [sampled_by(pair(trajectories[0]), 0.5), sampled_by(pair(trajectories[1]), -0.25)]
    settings = ("train.problems_per_step=1", "train.epochs=2", f"train.objective.algorithm={algorithm}")
    execute(stage_of([groups], *settings), tmp_path / "out")
    means, largest, shares = mismatch_of(tmp_path / "out")
    assert list(means) == [1, 2, 3, 4]
    assert sorted(means.values()) == pytest.approx([0.25, 0.25, 0.5, 0.5], rel=1e-4)
    assert largest == pytest.approx(means, rel=1e-4)
    assert shares == pytest.approx(dict.fromkeys(means, 1.0), rel=1e-6)
    execute(stage_of([[pair(trajectories[0])]], *settings), tmp_path / "older")
    assert mismatch_of(tmp_path / "older") == [{}, {}, {}]


def test_a_cap_on_importance_weights_changes_the_policy(stage_of, trajectories, tmp_path):
    """Errors alone are weighted: by 1 where the sampler was the trainer, else by half, or by what the cap leaves."""
    trained = {}
    for name, delta, cap in (
        ("off", math.log(2), "null"), ("equal", 0.0, "4"), ("double", math.log(2), "4"), ("cut", math.log(8), "2"),
        ("half", -math.log(2), "4"),
    ):  # fmt: skip
        groups = [sampled_by(pair(t), delta) for t in trajectories[:2]]
        execute(stage_of([groups], f"train.objective.importance_cap={cap}"), tmp_path / name)
        trained[name] = metrics_of(tmp_path / name, "loss")[1], load_file(tmp_path / name / "model/model.safetensors")
    losses = {name: loss for name, (loss, _) in trained.items()}
    # The errors' part of the loss once more, and half of it.
    step_up, step_down = losses["double"] - losses["off"], losses["off"] - losses["half"]
    assert step_up == pytest.approx(2 * step_down, rel=1e-3)
    assert step_up > 0.05
    weights = {name: state for name, (_, state) in trained.items()}
    same = {name: all(torch.equal(state[key], weights["off"][key]) for key in state) for name, state in weights.items()}
    assert same == {"off": True, "equal": True, "double": False, "cut": False, "half": False}
    assert losses["cut"] == pytest.approx(losses["double"], rel=1e-4)


def test_a_cap_needs_the_sampler_s_log_probs(stage_of, trajectories, tmp_path):
    stage = stage_of([[pair(trajectories[0])]], "train.objective.importance_cap=2")
    with pytest.raises(DataError, match=r"sample 0, has no sampler_logprobs, which train\.objective\.importance_cap"):
        execute(stage, tmp_path / "out")


PPO = ("train.objective.algorithm=ppo", "masks.on_no_correct=repair")


def values_of(folder):
    return {(row["problem_id"], row["sample"]): row["values"] for row in iterate_rows(folder, VALUES)}


def test_ppo_leaves_no_problem_out_and_its_critic_goes_on(stage_of, trajectories, tmp_path):
    """Two shards; the second round's old values are what the first one's critic says."""
    shards = [[make(t) for make, t in zip(MIXED, trajectories[start:], strict=False)] for start in (0, 4)]
    numbered = [[[row | {"sample": i} for i, row in enumerate(rows)] for rows in shard] for shard in shards]
    first, second = tmp_path / "first", tmp_path / "second"
    manifest = execute(stage_of(numbered, *PPO, "train.epochs=2"), first).manifest
    assert (manifest["rows_in"], manifest["rows_out"]) == (8, 8)
    assert not any(manifest["dropped"].values())
    assert manifest["counts"]["groups_of_equal_rewards"] == 6
    rollouts = {(row["problem_id"], row["sample"]): row for shard in numbered for rows in shard for row in rows
                if row["role"] != "repair"}  # fmt: skip
    fresh = values_of(first)
    mean = sum(row["reward"] for row in rollouts.values()) / len(rollouts)
    assert 0 < mean < 1
    assert fresh == {key: pytest.approx([mean] * len(row["ids"])) for key, row in rollouts.items()}
    for name in ("value_loss", "value_clip_fraction", "explained_variance"):
        assert len(metrics_of(first, name)) == 2 * 4
    execute(stage_of(numbered, *PPO, policy=first), second)
    after = values_of(second)
    assert after.keys() == fresh.keys()
    row = rollouts[next(iter(after))]
    vlm = load_model(first / "model")
    problem = ProblemSet(stage_of([], *PPO).problems)[row["problem_id"]]
    prompt = policy_prompt(vlm.processor, load_recipe("digits").prompt, problem)
    batch = response_batch(vlm, [encode_prompt(vlm, prompt)], [row["ids"]])
    critic = load_file(first / CRITIC / "model.safetensors")
    with torch.no_grad():
        hidden_TH = vlm.model.base_model(**batch.inputs).last_hidden_state[0, -len(row["ids"]) - 1 : -1]
    expected = (hidden_TH @ critic["weight"][0] + critic["bias"] + critic["center"]).tolist()
    assert critic["center"].item() == pytest.approx(mean)
    assert len(set(expected)) > 1
    assert after[row["problem_id"], row["sample"]] == pytest.approx(expected, abs=1e-4)


def test_a_stopped_ppo_goes_on_with_the_values_that_it_has(stage_of, trajectories, tmp_path):
    stage = stage_of([[unrepaired(t)] for t in trajectories[:2]], *PPO)
    out = tmp_path / "out"
    execute(stage, out)
    (out / "manifest.json").unlink()
    made = {(problem, sample): [0.5] * len(values) for (problem, sample), values in values_of(out).items()}
    step = Step.open(out, stage.plan())
    for index, trajectory in enumerate(trajectories[:2]):
        rows = [{"problem_id": p, "sample": s, "values": v} for (p, s), v in made.items() if p == trajectory[0]]
        step.write_shards(index, {VALUES: rows})
    execute(stage, out)
    assert values_of(out) == made


def old_logprobs_of(folder):
    rows = iterate_rows(folder, OLD_LOGPROBS)
    return {(row["problem_id"], row["sample"], row["role"]): row["old_logprobs"] for row in rows}


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "dpo", "ppo"])
def test_below_float32_every_step_compares_with_its_own_passes_of_the_first_policy(
    stage_of, trajectories, tmp_path, algorithm
):
    """Three steps of two problems over two shards, twice: at a learning rate of nothing every ratio is 1 until the
    second epoch, whose steps are of other problems."""
    shards = [[pair(t) for t in trajectories[:3]], [pair(t) for t in trajectories[3:6]]]
    if algorithm == "ppo":
        shards = [[unrepaired(t) for t in trajectories[:3]], [unrepaired(t) for t in trajectories[3:6]]]
    settings = [f"train.objective.algorithm={algorithm}", "masks.on_no_correct=repair", "model.dtype=bfloat16"]
    stage = stage_of(shards, *settings, "train.epochs=2", "train.optimizer.learning_rate=1e-30")
    manifest = execute(stage, tmp_path / "out").manifest
    stored = {(row["problem_id"], row["sample"], row["role"]): row["old_logprobs"]
              for shard in shards for rows in shard for row in numbered(rows)}  # fmt: skip
    read = old_logprobs_of(tmp_path / "out")
    assert read.keys() == stored.keys()
    assert not any(read[key] == stored[key] for key in read)
    assert {name for name in manifest["files"] if name.startswith("old_logprobs")} == {
        "old_logprobs-00000.parquet", "old_logprobs-00001.parquet"
    }  # fmt: skip
    assert manifest["device_seconds"]["score"] > 0
    (first,) = metrics_of(tmp_path / "out", "ratio_first_step").items()
    assert first[0] == 1
    assert 1 < first[1] < math.exp(0.1)
    if algorithm == "dpo":
        margins = metrics_of(tmp_path / "out", "reward_margin")
        assert [margins[step] for step in (1, 2, 3)] == [0.0, 0.0, 0.0]
        return
    for role in ("correct",) if algorithm == "ppo" else ("error", "repair"):
        ratios = metrics_of(tmp_path / "out", f"ratio_max/{role}")
        assert [ratios[step] for step in (1, 2, 3)] == [1.0, 1.0, 1.0]
        assert any(ratios[step] != 1.0 for step in (4, 5, 6))


@pytest.mark.usefixtures("rounding")
def test_steps_behind_the_first_compare_with_the_policy_that_made_the_groups(stage_of, trajectories, tmp_path):
    settings = ("model.dtype=bfloat16", "train.optimizer.learning_rate=1e-3")
    stage = stage_of([[pair(t) for t in trajectories[:6]]], *settings)
    execute(stage, tmp_path / "out")
    ratios = metrics_of(tmp_path / "out", "ratio_max/error")
    assert ratios[1] == 1.0
    assert min(ratios[2], ratios[3]) > 1.01
    still = stage_of([[pair(t) for t in trajectories[:6]]], *settings[:1], "train.optimizer.learning_rate=1e-30")
    execute(still, tmp_path / "still")
    assert old_logprobs_of(tmp_path / "out") == old_logprobs_of(tmp_path / "still")


@pytest.mark.usefixtures("rounding")
def test_a_stopped_run_goes_on_with_the_old_log_probs_that_it_has(stage_of, trajectories, tmp_path):
    shards = [[pair(t)] for t in trajectories[:4]]
    stage = stage_of(shards, "model.dtype=bfloat16", "train.problems_per_step=3")
    execute(stage, tmp_path / "out")
    expected = old_logprobs_of(tmp_path / "out")
    step = Step.open(tmp_path / "again", stage.plan())
    chosen, made = 2, trajectories[2][0]
    rows = [
        {"problem_id": p, "sample": s, "role": role, "old_logprobs": [-7.0] * len(values)}
        for (p, s, role), values in expected.items()
        if p == made
    ]
    step.write_shards(chosen, {OLD_LOGPROBS: rows})
    execute(stage, tmp_path / "again")
    found = old_logprobs_of(tmp_path / "again")
    assert {key: values for key, values in found.items() if key[0] != made} == {
        key: values for key, values in expected.items() if key[0] != made
    }
    assert all(set(values) == {-7.0} for key, values in found.items() if key[0] == made)
    assert metrics_of(tmp_path / "again", "ratio_first_step") == metrics_of(tmp_path / "out", "ratio_first_step")


def test_what_is_believed_stays_so_when_old_log_probs_are_read_again(source_of, trajectories):
    """The repair's tokens have a probability of 0.05, by the trainer's own passes one of 0.03, and support is 0.04."""

    def likely(probability):
        return [
            [row | {"old_logprobs": [math.log(probability)] * len(row["ids"])} for row in pair(t)]
            for t in trajectories[:2]
        ]

    source = source_of([likely(0.05)], "train.support=0.04")
    read = [row for rows in likely(0.03) for row in rows]
    names = [column.name for column in OLD_LOGPROBS.columns]
    source.step.write_shards(0, {OLD_LOGPROBS: [{name: row[name] for name in names} for row in read]})
    (groups,) = source.batches()
    assert [[t.row["role"] for t in group.trajectories] for group in groups] == [["error", "repair"]] * 2
    trained = [t for group in groups for t in group.trajectories]
    assert all(t.row["old_logprobs"] == pytest.approx([math.log(0.03)] * len(t.gate_T)) for t in trained)


def test_in_float32_the_groups_old_log_probs_are_trained_on(stage_of, trajectories, tmp_path, caplog):
    execute(stage_of([[pair(t) for t in trajectories[:4]]]), tmp_path / "out")
    assert not list((tmp_path / "out").glob("old_logprobs-*"))
    (first,) = metrics_of(tmp_path / "out", "ratio_first_step").items()
    assert first == (1, pytest.approx(1.0, abs=1e-3))
    assert "ratio_first_step" not in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_old_log_probs_of_something_else_are_told_aloud(stage_of, trajectories, tmp_path, caplog, dtype):
    """They have no manifest, so that nothing but the numbers can tell: every token is off by half a nat."""

    def changed(row):
        return row | {"old_logprobs": [value - 0.5 for value in row["old_logprobs"]]}

    groups = [[[changed(row) for row in pair(t)] for t in trajectories[:4]]]
    execute(stage_of(groups, f"model.dtype={dtype}", "train.epochs=2"), tmp_path / "out")
    (first,) = metrics_of(tmp_path / "out", "ratio_first_step").items()
    assert first == (1, pytest.approx(math.exp(0.5), rel=0.02))
    assert "groups: the policy's log-probs before its first step are not the groups' old ones" in caplog.text
    assert "run df build-masks with this policy and recipe" in caplog.text


def test_the_same_seed_trains_the_same_bytes(stage_of, trajectories, tmp_path):
    groups = [[pair(t) for t in trajectories[:6]]]
    runs = {out: tmp_path / out for out in "abc"}
    files = {
        out: execute(stage_of(groups, seed=seed), runs[out]).manifest["files"]
        for out, seed in (("a", 1), ("b", 1), ("c", 2))
    }
    for found in files.values():
        found.pop("metrics.parquet")
    assert files["a"] == files["b"]
    assert {name for name in files["a"] if files["a"][name] != files["c"][name]} == {
        "model/model.safetensors", OPTIMIZER_STATE,
    }  # fmt: skip
    metrics = {out: [row for row in metric_rows(folder) if row["metric"] not in MACHINE_METRICS]
               for out, folder in runs.items()}  # fmt: skip
    assert metrics["a"] == metrics["b"] != metrics["c"]


def test_trackers_tell_of_every_step_and_are_no_part_of_the_output(stage_of, trajectories, tmp_path):
    groups = [[pair(t) for t in trajectories[:4]]]
    plain = execute(stage_of(groups, "train.epochs=2"), tmp_path / "plain").manifest
    told = execute(stage_of(groups, "train.epochs=2", "tracking.trackers=[jsonl]"), tmp_path / "told").manifest
    lines = [json.loads(line) for line in (tmp_path / "told" / "tracking" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["loss"] for line in lines} == metrics_of(tmp_path / "told", "loss")
    assert len(lines) == 2 * 2
    assert told["recipe"] == plain["recipe"]
    assert told["files"].keys() == plain["files"].keys()
    assert told["files"]["model/model.safetensors"] == plain["files"]["model/model.safetensors"]
