"""The commands on each vision-language family that is taken, tiny and untrained, on problems with 0, 1 and 2 images."""

import json
import math

import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from readings import noisy
from stages.artifacts.columns import GROUPS, METRICS, PROBLEMS, REPAIR_SET, ROLLOUTS, SCORES
from stages.artifacts.manifests import read_manifest
from stages.artifacts.problems import ProblemSet, encode_image
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows, write_rows
from stages.evaluate import Evaluate
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s1_sft_repair import SftRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from tiny_families import FAMILIES, TAKEN, make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECIPE = load_recipe(
    "digits",
    [
        "reward.name=tiny_families:even",
        "audit.auditor=none",
        "sft.epochs=1",
        "rollout.problems=null",
        "rollout.samples_per_problem=4",
        "rollout.temperature=1.0",
        "rollout.max_new_tokens=12",
        "masks.candidates=4",
        "train.problems_per_step=8",
        "evaluate.draws=1",
    ],
)
IMAGES = [[], [noisy(84, 28, 0)], [noisy(56, 84, 1), noisy(40, 70, 2)], [noisy(28, 60, 3)]]


def problem(number):
    images = [encode_image(image) for image in IMAGES[number % len(IMAGES)]]
    return {"problem_id": f"p{number}", "question": f"What is {number}?", "answer": str(number), "images": images}


def end_sooner(base):
    """Let a fifth of the tokens end a response: without training, it would nearly always be cut off."""
    file = base / "generation_config.json"
    config = json.loads(file.read_text())
    config["eos_token_id"] = [config["eos_token_id"], *range(200, 260)]
    file.write_text(json.dumps(config))


@pytest.fixture(scope="module", params=TAKEN)
def run(request, tiny_vlm, tmp_path_factory):
    """Folders of the commands by name, beside `base` and `problems.parquet`."""
    if request.param == "SmolVLM2":
        pytest.importorskip("num2words", reason="the extra smolvlm")
    folder = tmp_path_factory.mktemp("run")
    base = make(FAMILIES[request.param], tiny_vlm.tokenizer, folder / "base")
    end_sooner(base)
    problems, repair_set = folder / "problems.parquet", folder / "repair_set.parquet"
    write_rows(problems, PROBLEMS, [problem(number) for number in range(8)])
    texts = {"error": "The digits are 1, 2.", "repair": "The digits are 3, 2."}
    write_rows(repair_set, REPAIR_SET, [problem(number) | texts for number in range(12)])
    commands = {
        "sft-repair": SftRepair(RECIPE, repair_set, base),
        "rollout": Rollout(RECIPE, problems, base),
        "build-masks": BuildMasks(RECIPE, folder / "rollout", problems, folder / "sft-repair", base),
        "train-policy": TrainPolicy(RECIPE, folder / "build-masks", problems, base),
        "evaluate": Evaluate(RECIPE, problems, folder / "train-policy"),
    }
    for name, command in commands.items():
        execute(command, folder / name)
    return folder


def metrics(folder):
    rows = list(iterate_rows(folder / "metrics.parquet", METRICS))
    return {(row["step"], row["metric"]): row["value"] for row in rows}


def test_every_command_does_its_work(run):
    assert len(list(iterate_rows(run / "rollout", ROLLOUTS))) == 8 * 4
    assert read_manifest(run / "build-masks")["counts"]["errors_repaired"] > 0
    assert {row["problem_id"] for row in iterate_rows(run / "evaluate", SCORES)} == {f"p{n}" for n in range(8)}


def test_training_starts_from_ratio_one_and_changes_the_weights(run):
    for name in ("sft-repair", "train-policy"):
        assert 0 < metrics(run / name)[1, "grad_norm"] < math.inf
    trained = metrics(run / "train-policy")
    for role in ("error", "repair"):
        assert trained[1, f"ratio_max/{role}"] == pytest.approx(1, abs=1e-3)
    before, after = (load_model(folder).model.state_dict() for folder in (run / "base", run / "train-policy" / "model"))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_old_log_probs_are_those_of_rows_alone(run):
    vlm, problems = load_model(run / "base"), ProblemSet(run / "problems.parquet")
    for row in iterate_rows(run / "build-masks", GROUPS):
        prompt = encode_prompt(vlm, policy_prompt(vlm.processor, RECIPE.prompt, problems[row["problem_id"]]))
        expected_T = plain_logprobs(vlm, response_batch(vlm, [prompt], [row["ids"]]), temperature=1.0)[0]
        torch.testing.assert_close(torch.tensor(row["old_logprobs"]), expected_T, atol=1e-4, rtol=0)
