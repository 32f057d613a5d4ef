"""Which errors `df build-masks` repairs: problems without a correct rollout, a lower threshold, null rewards."""

from collections import Counter
from dataclasses import replace

import pytest

from ahead import AheadModels
from stages.artifacts.columns import GROUPS, PROBLEMS, REPAIRS, ROLLOUTS
from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import encode_image
from stages.artifacts.stage import execute
from stages.artifacts.step import Tally
from stages.artifacts.store import iterate_rows, write_rows
from stages.audit.opening import open_auditor
from stages.engines.protocol import Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import DataError
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Repairer
from stages.runtime.interruption import Requests, Stopped
from stages.s4_build_masks import BuildMasks
from stages.s4_build_masks.group_builder import GroupBuilder
from stages.training.heldout import with_end

SETTINGS = ("audit.auditor=none", "masks.candidates=4", "rollout.temperature=1.0")
GRADED = """
def graded(response, problem):
    return 0.6 if response.endswith(f"The answer is {problem['answer']}.") else 0.2
"""


@pytest.fixture(scope="module")
def rollouts_of(base_vlm):
    """A function: rollouts of a problem, its annotated error or repair, with these rewards."""

    def make(problem, **rewards):
        return [
            {"problem_id": problem.problem_id, "sample": sample, "text": problem.extra[side], "reward": reward,
             "ids": with_end(base_vlm, problem.extra[side]), "finish_reason": "stop",
             "sampler_logprobs": []}
            for sample, (side, reward) in enumerate((side, r) for side, values in rewards.items() for r in values)
        ]  # fmt: skip

    return make


@pytest.fixture
def build(base_vlm, repair_problems, math_reward, step):
    """A function: rows of repairs and of groups, and the tally."""

    def run(rollouts, *settings, max_new_tokens=72):
        recipe = load_recipe("digits", [*SETTINGS, *settings])
        engine = TransformersEngine(base_vlm, rows_per_batch=64)
        policy = Answerer(engine, recipe.prompt, math_reward, CostLedger())
        repairer = Repairer(engine, recipe.prompt, math_reward, CostLedger())
        problems = {problem.problem_id: problem for problem in repair_problems}
        step.tally = Tally()
        builder = GroupBuilder(recipe, problems, repairer, policy, open_auditor(recipe, policy), step)
        built = builder.build(rollouts, Sampling(max_new_tokens, 1.0, seed=3))
        return built.repairs, built.groups, step.tally

    return run


def test_a_problem_without_a_correct_rollout_is_skipped_or_repaired(build, rollouts_of, repair_problems):
    hard, easy = repair_problems[1:3]
    rollouts = rollouts_of(hard, error=[0.0, 0.0]) + rollouts_of(easy, repair=[1.0], error=[0.0])
    repairs, groups, tally = build(rollouts)
    assert {row["problem_id"] for row in repairs} == {easy.problem_id}
    assert (tally.counts["problems_none_correct"], tally.counts["repair_triggered"]) == (1, 1)
    assert [(row["role"], row["in_pair"]) for row in groups if row["problem_id"] == hard.problem_id] == [
        ("error", False), ("error", False),
    ]  # fmt: skip
    repairs, groups, tally = build(rollouts, "masks.on_no_correct=repair")
    assert {row["problem_id"] for row in repairs} == {hard.problem_id, easy.problem_id}
    assert (tally.counts["problems_none_correct"], tally.counts["repair_triggered"]) == (1, 3)
    chosen = {(row["problem_id"], row["sample"]) for row in repairs if row["selection"] == "chosen"}
    found = {(row["problem_id"], row["sample"]) for row in groups if row["role"] == "repair"}
    assert found == chosen
    assert any(name == hard.problem_id for name, _ in found)


def test_a_problem_whose_rollouts_are_all_unscored_is_counted(build, rollouts_of, repair_problems):
    unscored, right, mixed = repair_problems[:3]
    rollouts = (
        rollouts_of(unscored, error=[None, None])
        + rollouts_of(right, repair=[1.0, 1.0], error=[None])
        + rollouts_of(mixed, repair=[1.0], error=[0.0, None])
    )
    repairs, groups, tally = build(rollouts, "masks.on_no_correct=repair")
    assert tally.counts["problems"] == 3
    assert tally.counts["problems_unscored"] == tally.counts["problems_all_correct"] == 1
    assert tally.counts["problems_none_correct"] == 0
    assert tally.dropped["unscored"] == 4
    assert {(row["problem_id"], row["sample"]) for row in repairs} == {(mixed.problem_id, 1)}
    assert unscored.problem_id not in {row["problem_id"] for row in groups}
    assert tally.rows_in == 8


def test_rollouts_that_the_policy_did_not_sample_are_told_once_aloud(build, rollouts_of, repair_problems, caplog):
    """As rollouts in a folder without a manifest may be: nothing else knows who sampled them."""
    rollouts = [row for problem in repair_problems[:2] for row in rollouts_of(problem, repair=[1.0, 1.0])]
    _, groups, _ = build(rollouts)
    own = [row | {"sampler_logprobs": of["old_logprobs"]} for row, of in zip(rollouts, groups, strict=True)]
    build(own)
    assert not caplog.records
    build([row | {"sampler_logprobs": [value - 0.5 for value in row["sampler_logprobs"]]} for row in own])
    (told,) = caplog.messages
    assert "are 0.5 nats (root mean square) from those that they were sampled with, and 0.001 at most" in told


def test_a_token_that_the_policy_never_samples_is_named(build, rollouts_of, repair_problems, base_vlm):
    """Its log-prob is minus infinity, which nothing can be trained on."""
    problem = repair_problems[0]
    rollouts = rollouts_of(problem, repair=[1.0])
    token = base_vlm.model.config.vision_end_token_id
    rollouts[0]["ids"].insert(1, token)
    message = (
        f"{problem.problem_id}, sample 0: the policy's log-prob of token {token} is -inf, it may not be sampled; drop"
    )
    with pytest.raises(DataError, match=message):
        build(rollouts)


@pytest.mark.parametrize(("threshold", "right"), [(0.5, True), (0.7, False)])
def test_the_threshold_decides_what_a_graded_reward_calls_correct(
    rollouts_of, repair_problems, base_dir, tmp_path, monkeypatch, threshold, right
):
    (tmp_path / "graded_reward.py").write_text(GRADED)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = repair_problems[:6]
    columns = [
        {"problem_id": p.problem_id, "question": p.question, "answer": p.answer, "kind": p.kind,
         "images": [encode_image(image) for image in p.images]}
        for p in chosen
    ]  # fmt: skip
    write_rows(tmp_path / "problems.parquet", PROBLEMS, columns)
    rollouts = [row for p in chosen for row in rollouts_of(p, repair=[0.6], error=[0.2])]
    (tmp_path / "rollouts").mkdir()
    rows = [row | {"sampler_logprobs": [-1.0] * len(row["ids"])} for row in rollouts]
    write_rows(tmp_path / "rollouts" / f"{ROLLOUTS.name}-00000.parquet", ROLLOUTS, rows)
    recipe = load_recipe(
        "digits",
        [*SETTINGS, "masks.on_no_correct=repair", "reward.name=graded_reward:graded", f"reward.threshold={threshold}"],
    )
    out = tmp_path / "out"
    stage = BuildMasks(recipe, tmp_path / "rollouts", tmp_path / "problems.parquet", base_dir, base_dir)
    counts = execute(stage, out).manifest["counts"]
    repairs, groups = list(iterate_rows(out, REPAIRS)), list(iterate_rows(out, GROUPS))
    assert {round(row["reward"], 3) for row in repairs} == {0.2, 0.6}
    if right:
        assert counts["repair_triggered"] == 6
        assert counts.get("problems_none_correct", 0) == 0
        assert {(row["role"], round(row["reward"], 3)) for row in groups} >= {("correct", 0.6), ("repair", 0.6)}
        assert {round(row["reward"], 3) for row in repairs if row["selection"] == "chosen"} == {0.6}
    else:
        assert counts["repair_triggered"] == 12
        assert counts["problems_none_correct"] == 6
        assert {row["selection"] for row in repairs} == {"wrong"}
        assert {row["role"] for row in groups} == {"error"}


def test_a_repair_that_was_cut_is_not_selected(build, rollouts_of, repair_problems):
    """It has no end token, so the error's own would be marked, and pushed down."""
    rollouts = rollouts_of(repair_problems[1], repair=[1.0], error=[0.0])
    settings = ("audit.auditor=none", "masks.candidates=1")
    ((whole,), _, _) = build(rollouts, *settings)
    assert whole["selection"] == "chosen"
    ((cut,), groups, tally) = build(rollouts, *settings, max_new_tokens=len(whole["ids"]) - 1)
    assert (cut["ids"], cut["reward"], cut["selection"]) == (whole["ids"][:-1], 1.0, "cut")
    assert tally.counts["candidates_cut"] == 1
    assert not any(row["in_pair"] for row in groups)


def test_so_many_errors_of_a_problem_are_repaired_and_the_others_counted(build, rollouts_of, repair_problems):
    several, single = repair_problems[1:3]
    rollouts = rollouts_of(several, repair=[1.0], error=[0.0] * 5) + rollouts_of(single, repair=[1.0], error=[0.0])
    drawn = set()
    for seed in range(6):
        repairs, groups, tally = build(rollouts, "masks.errors_per_problem=2", "masks.candidates=1", f"seed={seed}")
        samples = {row["sample"] for row in repairs if row["problem_id"] == several.problem_id}
        assert len(samples) == 2
        assert {row["sample"] for row in repairs if row["problem_id"] == single.problem_id} == {1}
        assert (tally.counts["repair_triggered"], tally.counts["errors_over_limit"]) == (3, 3)
        assert tally.counts["errors_without_repair"] == 3 - tally.counts["errors_repaired"]
        in_pairs = {row["sample"] for row in groups if row["problem_id"] == several.problem_id and row["in_pair"]}
        assert in_pairs <= samples
        drawn |= {frozenset(samples)}
    assert len(drawn) > 2


def test_a_further_candidate_is_sampled_where_none_is_feasible_yet(build, rollouts_of, repair_problems):
    rollouts = [row for p in repair_problems[:8] for row in rollouts_of(p, repair=[1.0], error=[0.0, 0.0])]
    first, _, _ = build(rollouts, "masks.candidates=1")
    repairs, groups, tally = build(rollouts, "masks.candidates=3", "masks.candidates_when=until_feasible")
    by_error = {}
    for row in repairs:
        by_error.setdefault((row["problem_id"], row["sample"]), []).append(row)
    assert [rows[0] for rows in by_error.values()] == first
    assert {len(rows) for rows in by_error.values()} == {1, 2, 3}
    for rows in by_error.values():
        assert [row["candidate"] for row in rows] == list(range(len(rows)))
        assert [row["selection"] for row in rows[:-1]] == ["wrong"] * (len(rows) - 1)
        assert (rows[-1]["selection"] == "chosen") == (rows[-1]["reward"] == 1.0)
        assert rows[-1]["selection"] == "chosen" or len(rows) == 3
    texts = [[row["text"] for row in rows] for rows in by_error.values() if len(rows) > 1]
    assert any(len(set(own)) > 1 for own in texts)
    assert tally.counts["candidates"] == len(repairs) < 3 * tally.counts["repair_triggered"]
    chosen = {key for key, rows in by_error.items() if rows[-1]["selection"] == "chosen"}
    assert {(row["problem_id"], row["sample"]) for row in groups if row["role"] == "repair"} == chosen


WORTHWHILE = ("masks.repair_when=worthwhile", "masks.worthwhile_after=4", "masks.worthwhile_share=0.1")


@pytest.fixture
def kinds(rollouts_of, repair_problems, base_dir, tmp_path):
    """A function: the stage on four shards, each of two problems that can be repaired and one that never is right."""
    chosen = repair_problems[:12]
    kind = {p.problem_id: ("sum", None, "impossible")[place % 3] for place, p in enumerate(chosen)}
    columns = [
        {"problem_id": p.problem_id, "question": p.question, "kind": kind[p.problem_id],
         "answer": "987654" if kind[p.problem_id] == "impossible" else p.answer,
         "images": [encode_image(image) for image in p.images]}
        for p in chosen
    ]  # fmt: skip
    write_rows(tmp_path / "problems.parquet", PROBLEMS, columns)
    (tmp_path / "rollouts").mkdir()
    for shard in range(4):
        rows = [row for p in chosen[3 * shard : 3 * shard + 3] for row in rollouts_of(p, repair=[1.0], error=[0.0] * 3)]
        rows = [row | {"sampler_logprobs": [-1.0] * len(row["ids"])} for row in rows]
        write_rows(tmp_path / "rollouts" / f"{ROLLOUTS.name}-{shard:05d}.parquet", ROLLOUTS, rows)

    def make(*settings):
        recipe = load_recipe("digits", [*SETTINGS, "model.dtype=float32", *settings])
        return BuildMasks(recipe, tmp_path / "rollouts", tmp_path / "problems.parquet", base_dir, base_dir)

    return make, kind


def test_a_kind_that_is_not_worthwhile_is_given_up_after_the_shards_that_told(kinds, tmp_path):
    """Against a loop over the shards; the four errors that tell are reached in the second one."""
    make, kind = kinds
    outcome = execute(make(*WORTHWHILE), tmp_path / "out")
    counts = outcome.manifest["counts"]
    tried, feasible = Counter(), Counter()
    for shard in range(4):
        repairs = list(iterate_rows(tmp_path / "out" / f"{REPAIRS.name}-{shard:05d}.parquet", REPAIRS))
        found = {(row["problem_id"], row["sample"]) for row in repairs}
        chosen = {(row["problem_id"], row["sample"]) for row in repairs if row["selection"] == "chosen"}
        open_kinds = {k for k in ("sum", None, "impossible") if tried[k] < 4 or feasible[k] / tried[k] >= 0.1}
        assert Counter(kind[name] for name, _ in found) == dict.fromkeys(open_kinds, 3)
        tried.update(kind[name] for name, _ in found)
        feasible.update(kind[name] for name, _ in chosen)
        groups = list(iterate_rows(tmp_path / "out" / f"{GROUPS.name}-{shard:05d}.parquet", GROUPS))
        assert {(row["problem_id"], row["sample"]) for row in groups if row["in_pair"]} == chosen
        assert len([row for row in groups if row["role"] == "error"]) == 9
    assert tried == {"sum": 12, None: 12, "impossible": 6}
    assert (counts["errors_tried"], counts["errors_feasible"]) == (12, feasible[None])
    assert (counts["errors_tried (sum)"], counts["errors_feasible (sum)"]) == (12, feasible["sum"])
    assert (counts["errors_tried (impossible)"], counts["errors_feasible (impossible)"]) == (6, 0)
    assert counts["errors_not_worthwhile (impossible)"] == 6
    assert counts["repair_triggered"] == 30
    # A run that goes on has the counts of the shards before: without the first one's it would try a third.
    with pytest.raises(Stopped):
        execute(make(*WORTHWHILE), tmp_path / "stopped", requests=Requests(stop_after_s=0))
    assert len(list((tmp_path / "stopped").glob("groups-*.parquet"))) == 1
    again = execute(make(*WORTHWHILE), tmp_path / "stopped").manifest
    assert (again["counts"], again["files"]) == (counts, outcome.manifest["files"])


@pytest.mark.parametrize("settings", [("masks.candidates_when=until_feasible",), WORTHWHILE])
def test_an_engine_that_takes_shards_ahead_changes_nothing(kinds, tmp_path, settings):
    """Nor does a stop while later shards are under way: what they count is counted when they are written."""
    stage = kinds[0](*settings)
    expected = execute(stage, tmp_path / "plain").manifest
    ahead = replace(stage, models=AheadModels())
    with pytest.raises(Stopped):
        execute(ahead, tmp_path / "ahead", requests=Requests(stop_after_s=0))
    found = execute(ahead, tmp_path / "ahead").manifest
    for told in ("rows_in", "rows_out", "dropped", "counts", "files"):
        assert found[told] == expected[told]


def test_always_repairs_every_kind_and_leaves_the_plan_as_it_was(kinds):
    make, _ = kinds
    plain, asked = make().declared.recipe["masks"], make(*WORTHWHILE).declared.recipe["masks"]
    assert make("masks.worthwhile_share=0.5").declared.recipe["masks"] == plain
    assert asked == plain | {"repair_when": "worthwhile", "worthwhile_after": 4, "worthwhile_share": 0.1}
