"""`df build-masks` on siblings and preferences: as repairs without a repair model, as references with one."""

import pytest

from stages.artifacts.columns import GROUPS, PREFERENCES, PROBLEMS, REPAIRS, ROLLOUTS
from stages.artifacts.ledger import CostLedger
from stages.artifacts.problems import encode_image
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows, write_rows
from stages.audit.auditor import NoAuditor
from stages.core.alignment import difference_masks
from stages.engines.protocol import Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.errors import RecipeError
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Repairer
from stages.s4_build_masks import BuildMasks, BuildMasksFromPreferences
from stages.s4_build_masks.group_builder import GroupBuilder
from stages.s4_build_masks.stage import check_options
from stages.training.heldout import with_end

SIBLING = "masks.repairer=sibling"


class Recording(TransformersEngine):
    """Keeps what was generated from, and what was scored."""

    def generate(self, requests, sampling):
        self.requests = list(requests)
        return super().generate(requests, sampling)

    def score(self, requests, *, temperature):
        self.scored = list(requests)
        return super().score(requests, temperature=temperature)


def distance(first, second):
    """Levenshtein's recurrence, as it stands in a textbook."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        last, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            last, row[j] = row[j], min(last + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]


@pytest.fixture(scope="module")
def rollouts(base_vlm, repair_problems):
    """Of three problems: two errors and four correct rollouts, two of them alike; errors alone; correct ones alone."""
    mixed, wrong, right = repair_problems[:3]

    def row(problem, sample, text, reward):
        ids = with_end(base_vlm, text)
        return {"problem_id": problem.problem_id, "sample": sample, "text": text, "reward": reward, "ids": ids,
                "sampler_logprobs": [-1.0 - sample] * len(ids), "finish_reason": "stop"}  # fmt: skip

    answer = f"The answer is {mixed.answer}."
    texts = [
        (answer, 1.0),
        (mixed.extra["error"], 0.0),
        (mixed.extra["repair"], 1.0),
        ("The digits are 1. The answer is 100.", 0.0),
        (mixed.extra["repair"], 1.0),
        (f"The digits are 1. {answer}", 1.0),
        ("Nothing that can be scored.", None),
    ]
    return [
        *(row(mixed, sample, *text) for sample, text in enumerate(texts)),
        *(row(wrong, sample, wrong.extra["error"], 0.0) for sample in range(2)),
        *(row(right, sample, right.extra["repair"], 1.0) for sample in range(2)),
    ]


@pytest.fixture
def build(base_vlm, repair_problems, math_reward, step):
    """A function: the engine, rows of repairs and of groups."""

    def run(rollouts, *settings, repair_model=False, max_new_tokens=8):
        recipe = load_recipe("digits", ["rollout.temperature=1.0", *settings])
        engine = Recording(base_vlm, rows_per_batch=64)
        policy = Answerer(engine, recipe.prompt, math_reward, CostLedger())
        repairer = Repairer(engine, recipe.prompt, math_reward, CostLedger()) if repair_model else None
        problems = {problem.problem_id: problem for problem in repair_problems}
        builder = GroupBuilder(recipe, problems, repairer, policy, NoAuditor(), step)
        built = builder.build(rollouts, Sampling(max_new_tokens, 1.0, seed=3))
        return engine, built.repairs, built.groups

    return run


def test_the_nearest_correct_rollout_of_the_group_is_the_repair(build, rollouts):
    engine, repairs, groups = build(rollouts, SIBLING)
    mixed = [row for row in rollouts if row["problem_id"] == rollouts[0]["problem_id"]]
    correct = [row for row in mixed if row["reward"] == 1]
    chosen = {}
    for error in (mixed[1], mixed[3]):
        costs = {s["sample"]: distance(error["ids"], s["ids"]) / max(len(error["ids"]), len(s["ids"])) for s in correct}
        best = min(costs, key=lambda sample: (costs[sample], sample))
        chosen[error["sample"]] = best
        rows = [row for row in repairs if row["sample"] == error["sample"]]
        assert {row["candidate"]: row["cost"] for row in rows} == pytest.approx(costs)
        assert {row["candidate"]: row["selection"] for row in rows} == {
            sample: "chosen" if sample == best else "costlier" for sample in costs
        }
        assert {(row["flagged"], row["category"], row["reward"]) for row in rows} == {(False, None, 1.0)}
    assert chosen == {1: 2, 3: 5}, "samples 2 and 4 are alike: the lower is taken; each error has its own nearest"
    assert len(repairs) == 8
    found = {row["sample"]: row for row in groups if row["role"] == "repair"}
    assert {sample: row["ids"] for sample, row in found.items()} == {
        error: mixed[sibling]["ids"] for error, sibling in chosen.items()
    }
    for error, sibling in chosen.items():
        masks = difference_masks(mixed[error]["ids"], mixed[sibling]["ids"])
        own = next(row for row in groups if row["role"] == "error" and row["sample"] == error)
        assert (own["mask"], found[error]["mask"]) == (masks.error_T.tolist(), masks.repair_T.tolist())
    assert not hasattr(engine, "requests"), "nothing is sampled"


def test_siblings_stay_correct_rows_and_every_trajectory_is_scored_once(build, rollouts, step):
    engine, _, groups = build(rollouts, SIBLING)
    mixed = [row for row in groups if row["problem_id"] == rollouts[0]["problem_id"]]
    assert [(row["role"], row["sample"], row["in_pair"]) for row in mixed] == [
        ("correct", 0, False), ("error", 1, True), ("repair", 1, True), ("correct", 2, False),
        ("error", 3, True), ("repair", 3, True), ("correct", 4, False), ("correct", 5, False),
    ]  # fmt: skip
    assert len(engine.scored) == 5 + 1 + 1
    alike = [row["old_logprobs"] for row in mixed if row["ids"] == mixed[2]["ids"]]
    assert len(alike) == 3
    assert alike[0] == alike[1] == alike[2]
    assert all(len(row["old_logprobs"]) == len(row["ids"]) for row in groups)
    assert {row["role"] for row in groups if row["problem_id"] == rollouts[7]["problem_id"]} == {"error"}
    assert (step.tally.counts["problems_none_correct"], step.tally.counts["errors_repaired"]) == (1, 2)


def test_what_the_policy_sampled_keeps_its_sampler_s_log_probs(build, rollouts):
    """A sibling's repair too; a repair model's has none."""
    _, _, groups = build(rollouts, SIBLING)
    found = {(row["role"], row["sample"]): row for row in groups if row["problem_id"] == rollouts[0]["problem_id"]}
    sampler = {("repair", 1): 2, ("repair", 3): 5}
    assert {key: row["sampler_logprobs"] for key, row in found.items()} == {
        (role, sample): [-1.0 - sampler.get((role, sample), sample)] * len(row["ids"])
        for (role, sample), row in found.items()
    }
    right, wrong = rollouts[2], rollouts[1] | {"reward": -1.0}
    _, _, groups = build([right, wrong], "reward.threshold=0", repair_model=True, max_new_tokens=300)
    assert [(row["role"], row["sampler_logprobs"]) for row in groups] == [
        ("correct", right["sampler_logprobs"]), ("error", wrong["sampler_logprobs"]), ("repair", None),
    ]  # fmt: skip


def test_a_sibling_reference_is_a_correct_rollout_of_the_group(build, rollouts, repair_problems):
    settings = ("masks.reference=sibling", "prompt.references=[answer, sibling]", "masks.candidates=1")
    correct = {row["text"] for row in rollouts[:6] if row["reward"] == 1}
    shown = set()
    for seed in range(3):
        engine, _, _ = build(rollouts, *settings, f"seed={seed}", repair_model=True)
        assert len(engine.requests) == 2
        for request in engine.requests:
            reference = request.prompt.tail.split("A right answer: ")[1].split("<|im_end|>")[0]
            assert reference in correct
            shown.add(reference)
    assert len(shown) > 1
    engine, _, _ = build(rollouts, "masks.candidates=1", repair_model=True)
    assert all(f"The right answer is {repair_problems[0].answer}." in r.prompt.tail for r in engine.requests)


@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|video_pad|>", "\ue000"])
def test_a_sibling_that_no_prompt_can_show_is_not_shown(build, rollouts, repair_problems, step, mark):
    spelt = [row | {"text": f"{mark} {row['text']}"} if row["reward"] == 1 else row for row in rollouts]
    engine, _, groups = build(spelt, "masks.reference=sibling", "masks.candidates=1", repair_model=True)

    assert all(f"The right answer is {repair_problems[0].answer}." in r.prompt.tail for r in engine.requests)
    assert step.tally.counts["references_missing"] == len(engine.requests) == 2
    assert sum(row["role"] == "correct" for row in groups) == 6


def write_problems(path, spec, problems, **columns):
    rows = [
        {"problem_id": p.problem_id, "question": p.question, "answer": p.answer, "kind": p.kind,
         "images": [encode_image(image) for image in p.images]}
        | {name: value(p) for name, value in columns.items()}
        for p in problems
    ]  # fmt: skip
    write_rows(path, spec, rows)


@pytest.fixture
def written(rollouts, repair_problems, tmp_path):
    """Folder of rollouts, file of problems."""
    write_problems(tmp_path / "problems.parquet", PROBLEMS, repair_problems[:3])
    (tmp_path / "rollouts").mkdir()
    write_rows(tmp_path / "rollouts" / f"{ROLLOUTS.name}-00000.parquet", ROLLOUTS, rollouts)
    return tmp_path / "rollouts", tmp_path / "problems.parquet"


def test_no_repair_model_is_read(written, base_dir, tmp_path):
    manifest = execute(
        BuildMasks(load_recipe("digits", [SIBLING]), *written, None, base_dir), tmp_path / "out"
    ).manifest

    assert manifest["inputs"].keys() == {"rollouts", "problems", "policy"}
    assert manifest["counts"]["errors_repaired"] == 2
    assert manifest["counts"].get("references_missing", 0) == 0
    assert len(list(iterate_rows(tmp_path / "out", REPAIRS))) == 8


@pytest.mark.parametrize(
    ("settings", "with_model", "told"),
    [
        ([SIBLING], True, "repairer is sibling: no repair model runs; leave out --repair-model"),
        ([], False, "repairer is model: give --repair-model, or set masks.repairer=sibling"),
        (
            ["masks.reference=sibling", "prompt.references=[sibling]", "masks.on_no_correct=repair"],
            True,
            "on_no_correct is repair, masks.reference is sibling: a problem without a correct rollout has no sibling",
        ),
        (["masks.reference=preferred"], True, r"shown none \(prompt.references: answer\); add it there"),
    ],
)
def test_options_that_contradict_each_other_are_refused(written, base_dir, tmp_path, settings, with_model, told):
    stage = BuildMasks(load_recipe("digits", settings), *written, base_dir if with_model else None, base_dir)
    with pytest.raises(RecipeError, match=told):
        execute(stage, tmp_path / "out")


def test_a_repair_keeps_what_the_repair_model_finds_likely(written, base_dir, tmp_path):
    """It keeps the whole error where anything is likely enough."""

    def repairs(*settings):
        recipe = load_recipe("digits", ["rollout.max_new_tokens=80", *settings])
        out = tmp_path / str(len(settings))
        execute(BuildMasks(recipe, *written, base_dir, base_dir), out)
        return list(iterate_rows(out, REPAIRS))

    errors = {(row["problem_id"], row["sample"]): row["ids"] for row in iterate_rows(written[0], ROLLOUTS)}
    kept, drawn = repairs("masks.keep=1e-30"), repairs()
    assert len(kept) == len(drawn) > 3
    for row in kept:
        error = errors[row["problem_id"], row["sample"]]
        assert row["ids"][: len(error) - 1] == error[:-1]
    assert any(row["cost"] > 0.1 for row in drawn)


def test_vllm_that_keeps_nothing_is_refused(base_dir, tmp_path, monkeypatch):
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    told = r"masks\.keep is 0\.1, but vLLM draws every token; set engine\.name=transformers or masks\.keep=null"
    with pytest.raises(RecipeError, match=told):
        check_options(load_recipe("digits", ["masks.keep=0.1", "engine.name=vllm"]), base_dir)


@pytest.fixture
def preferences(repair_problems, tmp_path):
    """Five pairs: two of use, one whose sides are swapped, one right on both sides, one wrong on both."""
    used, swapped, right, wrong = repair_problems[:2], *repair_problems[2:5]
    chosen = {p.problem_id: p.extra["error" if p in (swapped, wrong) else "repair"] for p in repair_problems[:5]}
    rejected = {p.problem_id: p.extra["repair" if p in (swapped, right) else "error"] for p in repair_problems[:5]}
    write_problems(
        tmp_path / "preferences.parquet",
        PREFERENCES,
        repair_problems[:5],
        chosen=lambda p: chosen[p.problem_id],
        rejected=lambda p: rejected[p.problem_id],
    )
    return tmp_path / "preferences.parquet", used


def test_chosen_and_rejected_alone_make_pairs(preferences, base_dir, base_vlm, tmp_path):
    file, used = preferences
    stage = BuildMasksFromPreferences(load_recipe("digits", [SIBLING]), file, None, base_dir)
    manifest = execute(stage, tmp_path / "out").manifest

    assert manifest["inputs"].keys() == {"preferences", "policy"}
    assert manifest["dropped"] == {"chosen_is_wrong": 4, "rejected_is_correct": 2, "unscored": 0}
    assert manifest["rows_in"] == 10
    groups = list(iterate_rows(tmp_path / "out", GROUPS))
    assert len(groups) == 6
    for problem, (correct, error, repair) in zip(used, (groups[:3], groups[3:]), strict=True):
        right, wrong = (with_end(base_vlm, problem.extra[side]) for side in ("repair", "error"))
        assert [row["problem_id"] for row in (correct, error, repair)] == [problem.problem_id] * 3
        assert [(row["role"], row["ids"], row["in_pair"]) for row in (correct, error, repair)] == [
            ("correct", right, False), ("error", wrong, True), ("repair", right, True),
        ]  # fmt: skip
        masks = difference_masks(wrong, right)
        assert (error["mask"], repair["mask"]) == (masks.error_T.tolist(), masks.repair_T.tolist())
    assert {row["sampler_logprobs"] for row in groups} == {None}


def test_preferences_of_which_none_is_of_use_leave_empty_groups(repair_problems, base_dir, tmp_path):
    file = tmp_path / "swapped.parquet"
    write_problems(
        file, PREFERENCES, repair_problems[:1], chosen=lambda p: p.extra["error"], rejected=lambda p: p.extra["repair"]
    )
    manifest = execute(
        BuildMasksFromPreferences(load_recipe("digits", [SIBLING]), file, None, base_dir), tmp_path / "out"
    ).manifest

    assert (manifest["dropped"]["chosen_is_wrong"], manifest["rows_out"]) == (2, 0)
    assert list(iterate_rows(tmp_path / "out", GROUPS)) == []


def test_the_repair_model_is_shown_the_chosen_response(preferences, base_dir, tmp_path, monkeypatch):
    file, used = preferences
    prompts = []
    generate = TransformersEngine.generate

    def recording(self, requests, sampling):
        prompts.extend(request.prompt for request in requests)
        return generate(self, requests, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", recording)
    settings = ["masks.reference=preferred", "prompt.references=[preferred]", "audit.auditor=none"]
    stage = BuildMasksFromPreferences(load_recipe("digits", settings), file, base_dir, base_dir)
    execute(stage, tmp_path / "out")

    assert [prompt.tail.split("<|im_end|>")[0] for prompt in prompts] == [
        f"\nA right answer: {problem.extra['repair']}" for problem in used
    ]
    repairs = list(iterate_rows(tmp_path / "out", REPAIRS))
    assert [(row["problem_id"], row["sample"]) for row in repairs] == [(p.problem_id, 1) for p in used for _ in "ab"]
