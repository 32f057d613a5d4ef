"""Old log-probs are trained on with the policy and under the settings that they are of, and are refused with others."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.artifacts.columns import PROBLEMS
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.weights import weights_fingerprint
from stages.engines.loading import open_codec
from stages.engines.maker import check_maker, maker
from stages.errors import DataError
from stages.recipe import load_recipe
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s4_realign_pairs import RealignPairs
from stages.s5_train_policy import TrainPolicy

SETTINGS = (
    *("rollout.problems=null", "rollout.samples_per_problem=6", "masks.repairer=sibling", "model.dtype=float32"),
    *("train.problems_per_step=2", "train.gate=none"),
)
RECIPE = load_recipe("digits", SETTINGS)


def recipe_with(*settings):
    return load_recipe("digits", [*SETTINGS, *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("made-by")


@pytest.fixture(scope="module")
def problems(folder, digits):
    rows = pq.read_table(digits / "problems_train.parquet").slice(0, 8).to_pylist()
    pq.write_table(pa.Table.from_pylist(rows, schema=PROBLEMS.schema()), folder / "problems.parquet")
    return folder / "problems.parquet"


@pytest.fixture(scope="module")
def rollouts(folder, problems, base_dir):
    execute(Rollout(RECIPE, problems, base_dir), folder / "rollouts")
    return folder / "rollouts"


@pytest.fixture(scope="module")
def groups(folder, problems, rollouts, base_dir):
    execute(BuildMasks(RECIPE, rollouts, problems, None, base_dir), folder / "groups")
    return folder / "groups"


@pytest.fixture(scope="module")
def trained(folder, problems, groups, base_dir):
    """A training step's output, with its optimizer's state."""
    execute(TrainPolicy(RECIPE, groups, problems, base_dir), folder / "trained")
    return folder / "trained"


@pytest.fixture(scope="module")
def realigned(folder, groups):
    execute(RealignPairs(recipe_with("masks.align=lcs"), groups), folder / "realigned")
    return folder / "realigned"


@pytest.fixture
def other_weights(tmp_path, base_dir):
    """The base policy with one number changed."""
    copy = shutil.copytree(base_dir, tmp_path / "other")
    weights = load_file(copy / "model.safetensors")
    name = min(weights)
    weights[name].view(-1)[0] += 0.125
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.fixture
def other_template(tmp_path, base_dir):
    """The base policy with a word more in its chat template."""
    copy = shutil.copytree(base_dir, tmp_path / "template")
    template = copy / "chat_template.jinja"
    template.write_text("sum " + template.read_text())
    return copy


def train(made, problems, policy, recipe=RECIPE):
    return TrainPolicy(recipe, made, problems, policy).plan()


def mask(made, problems, policy, recipe=RECIPE):
    return BuildMasks(recipe, made, problems, None, policy).plan()


@pytest.fixture(params=["train-policy", "train-policy on realigned pairs", "build-masks"])
def plan(request, problems, rollouts, groups, realigned):
    """A function of a policy and a recipe: the plan of a command that reads log-probs."""
    made, command = {
        "train-policy": (groups, train),
        "train-policy on realigned pairs": (realigned, train),
        "build-masks": (rollouts, mask),
    }[request.param]
    return lambda policy, recipe=RECIPE: command(made, problems, policy, recipe)


def test_what_made_them_goes_on(plan, base_dir):
    plan(base_dir)


def test_other_weights_are_refused(plan, base_dir, other_weights):
    # Realigned pairs know no path of the policy.
    with pytest.raises(
        DataError, match=rf"weights of (the policy|{base_dir}) \(\w{{12}}\), not of those of {other_weights} \("
    ):
        plan(other_weights)


def test_another_chat_template_is_refused(plan, other_template):
    with pytest.raises(DataError, match=f"image processor of {other_template} makes other prompts than"):
        plan(other_template)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("rollout.temperature=1.3", r"rollout\.temperature was 0\.7 and is 1\.3"),
        ("prompt.instruction=Answer.", r"prompt\.instruction was '.*' and is 'Answer\.'"),
        ("model.max_pixels=784", r"model\.max_pixels was None and is 784"),
        ("model.min_pixels=100352", r"model\.min_pixels was None and is 100352"),
    ],
)
def test_another_setting_is_refused(plan, base_dir, setting, told):
    with pytest.raises(DataError, match=f": {told}. Give what they were made with, or run df"):
        plan(base_dir, recipe_with(setting))


def test_everything_that_differs_is_named(plan, other_weights):
    with pytest.raises(
        DataError, match=rf"those of {other_weights} .*; rollout\.temperature was .*; prompt\.instruction"
    ):
        plan(other_weights, recipe_with("rollout.temperature=0.5", "prompt.instruction=Answer."))


@pytest.mark.parametrize(
    "setting",
    [
        *("rollout.samples_per_problem=2", "rollout.max_new_tokens=30", "prompt.repair_instruction=Mend it.", "seed=5"),
        *("model.dtype=bfloat16", "train.epochs=3", "train.objective.kl_coef=0.1", "engine.rows_per_batch=3"),
        *("train.objective.algorithm=gspo", "train.objective.algorithm=ppo", "trainer.lora={rank: 4}"),
    ],
)
def test_what_no_log_prob_depends_on_may_differ(plan, base_dir, setting):
    plan(base_dir, recipe_with("masks.on_no_correct=skip", setting))


def test_a_model_is_its_weights_wherever_they_lie(plan, base_dir, tmp_path):
    moved = shutil.copytree(base_dir, tmp_path / "moved")
    (moved / "README.md").write_text("A note changes no log-prob.")
    save_file({"step": torch.zeros(1)}, moved / "optimizer.safetensors")
    plan(moved)


def test_a_training_step_and_the_model_in_it_are_one_policy(trained, problems, tmp_path):
    made = tmp_path / "rollouts"
    execute(Rollout(RECIPE, problems, trained), made)
    for policy in (trained, trained / "model", shutil.copytree(trained / "model", tmp_path / "moved")):
        mask(made, problems, policy)
    moved = shutil.copytree(trained, tmp_path / "run")
    assert weights_fingerprint(moved) == weights_fingerprint(trained / "model")
    # Known from the manifest: neither the weights nor the optimizer's state are read again.
    for file in moved.rglob("*.safetensors"):
        file.unlink()
    assert weights_fingerprint(moved) == weights_fingerprint(trained)


def test_shards_are_weights_too(base_dir, tmp_path):
    sharded = shutil.copytree(base_dir, tmp_path / "sharded")
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, tensors in parts.items():
        save_file({name: weights[name] for name in tensors}, sharded / file, metadata={"format": "pt"})
    index = {"weight_map": {name: file for file, tensors in parts.items() for name in tensors}}
    (sharded / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    before = weights_fingerprint(sharded)

    weights[names[1]].view(-1)[0] += 1
    save_file({name: weights[name] for name in names[1::2]}, sharded / "model-00002-of-00002.safetensors")
    assert before != weights_fingerprint(sharded)
    assert len(before) == 64


def test_a_hub_name_is_compared_with_hub_names_alone(groups, base_dir, tmp_path):
    """What lies on the hub under a name cannot be told from here: the first step's ratio tells."""
    assert weights_fingerprint(Path("org/model")) == "org/model"
    own = maker(base_dir, open_codec(base_dir, RECIPE), RECIPE)
    named = own | {"policy": own["policy"] | {"weights": "org/model"}}
    check_maker(groups, Path("org/model"), named, RECIPE, remake="df build-masks")
    made = tmp_path / "groups"
    shutil.copytree(groups, made)
    assert read_manifest(made)["recipe"]["policy"] == own["policy"]


def test_other_problems_under_the_same_ids_are_told(rollouts, groups, problems, base_dir, tmp_path, caplog):
    """As where a wrong reference answer was put right: the rollouts keep the rewards of the wrong one."""
    mask(rollouts, problems, base_dir)
    train(groups, shutil.copy(problems, tmp_path / "moved.parquet"), base_dir)
    assert not caplog.records
    rows = pq.read_table(problems).to_pylist()
    rows[0]["answer"] = "12345"
    righted = tmp_path / "righted.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=PROBLEMS.schema()), righted)
    mask(rollouts, righted, base_dir)
    train(groups, righted, base_dir)
    assert [message.partition(": ")[0] for message in caplog.messages] == [str(rollouts), str(groups)]
    assert all(f"made from {problems} as it was then, which is not {righted}: " in told for told in caplog.messages)


def test_groups_without_a_manifest_are_taken(groups, problems, other_weights, tmp_path):
    for file in groups.glob("groups-*.parquet"):
        shutil.copy(file, tmp_path)
    train(tmp_path, problems, other_weights)
