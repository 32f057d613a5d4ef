"""`df sft-repair --prompt policy`: a policy that has learned the repairs as answers, to start from."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.artifacts.columns import DROPPED, METRICS, REPAIR_SET, SUMMARY
from stages.artifacts.manifests import read_manifest
from stages.artifacts.problems import ProblemSet
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s1_sft_repair import SftRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from stages.training.heldout import with_end

SETTINGS = [
    *("sft.epochs=2", "sft.batch_size=16", "sft.heldout_share=0.1", "model.dtype=float32", "masks.repairer=sibling"),
    *("rollout.problems=12", "train.problems_per_step=12"),
]
RECIPE = load_recipe("digits", SETTINGS)


@pytest.fixture(scope="module")
def repair_set(tmp_path_factory, digits):
    """Eighty pairs, of which the second shows the picture of the last, which is held out."""
    path = tmp_path_factory.mktemp("pairs") / "repair_set.parquet"
    table = pq.read_table(digits / "repair_set.parquet").slice(0, 80)
    rows = table.to_pylist()
    rows[1]["images"] = rows[-1]["images"]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory, repair_set, base_dir):
    out = tmp_path_factory.mktemp("taught") / "policy"
    execute(SftRepair(RECIPE, repair_set, base_dir, "policy"), out)
    return out


def loss_of(vlm, problem):
    """Of the repair behind the question alone, token by token from the model's own logits."""
    prompt = policy_prompt(vlm.processor, RECIPE.prompt, problem)
    batch = response_batch(vlm, [encode_prompt(vlm, prompt)], [with_end(vlm, problem.extra["repair"])])
    with torch.no_grad():
        return -plain_logprobs(vlm, batch, temperature=1.0)[0].mean().item()


def test_the_held_out_loss_is_that_of_repairs_as_answers_and_falls(taught, repair_set, base_vlm):
    rows = ProblemSet(repair_set, REPAIR_SET)
    heldout = rows.many(rows.ids[-8:])
    vlm = load_model(taught / "model")
    (measure,) = iterate_rows(taught / "summary.parquet", SUMMARY)
    found = [loss_of(vlm, problem) for problem in heldout]
    assert (measure["measure"], measure["n"]) == ("loss a token", 8)
    assert measure["value"] == pytest.approx(sum(found) / 8, abs=1e-4)
    assert measure["low"] < measure["value"] < measure["high"]
    assert sum(found) < sum(loss_of(base_vlm, problem) for problem in heldout)


def test_nothing_is_trained_on_that_shows_what_is_held_out(taught, repair_set):
    manifest = read_manifest(taught)
    assert (manifest["rows_in"], manifest["rows_out"]) == (80, 71)
    assert manifest["dropped"] == {"held_out": 8, "shows_what_is_held_out": 1}
    (dropped,) = iterate_rows(taught / "dropped.parquet", DROPPED)
    assert dropped["problem_id"] == ProblemSet(repair_set, REPAIR_SET).ids[1]


def test_it_is_another_step_than_the_repair_model_s(taught, repair_set, base_dir):
    record = SftRepair(RECIPE, repair_set, base_dir, "policy").plan().record()["recipe"]
    other = SftRepair(RECIPE, repair_set, base_dir).plan().record()["recipe"]
    assert record["prompts_of"] == "policy"
    assert "prompts_of" not in other
    assert not (taught / "samples.parquet").exists()


def test_a_round_starts_from_it_with_an_optimizer_of_its_own(taught, digits, tmp_path):
    problems = digits / "problems_train.parquet"
    execute(Rollout(RECIPE, problems, taught), tmp_path / "rollout")
    execute(BuildMasks(RECIPE, tmp_path / "rollout", problems, None, taught), tmp_path / "masks")
    execute(TrainPolicy(RECIPE, tmp_path / "masks", problems, taught), tmp_path / "next")
    metrics = list(iterate_rows(tmp_path / "next" / "metrics.parquet", METRICS))
    assert {row["step"] for row in metrics} == {1}
    (ratio,) = [row["value"] for row in metrics if row["metric"] == "ratio_first_step"]
    assert ratio == pytest.approx(1, abs=1e-3)
