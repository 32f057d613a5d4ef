"""How an output folder stands to what a command is given; what of it an input has to be whole."""

import shutil
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from stages.artifacts import fingerprint
from stages.artifacts.columns import METRICS, ROLLOUTS
from stages.artifacts.integrity import check_input
from stages.artifacts.manifests import MANIFEST
from stages.artifacts.plan import Input, Plan, reads_of
from stages.artifacts.step import Step
from stages.artifacts.up_to_date import holds_work, standing
from stages.declared import (
    DECLARED,
    WEIGHTS,
    declare_rl_repair,
    declare_rollout,
    declare_sft_repair,
    declare_train_policy,
)
from stages.errors import ArtifactError
from stages.recipe import load_recipe
from stages.training.critic import CRITIC
from stages.training.prime import PRM
from stages.training.trainer import OPTIMIZER_STATE

BESIDE = ("optimizer.safetensors", "critic/model.safetensors", "prm/model/config.json")
PPO = ["train.objective.algorithm=ppo", "masks.on_no_correct=repair"]
ROWS = [{"step": 1, "metric": "loss", "value": 0.5}]


@pytest.fixture
def trained(tmp_path) -> Path:
    """A training step's output: policy, optimizer, critic, reward model, metrics."""
    step = Step.open(tmp_path / "trained", Plan("train-policy", {}, 0, {}))
    for name in (
        "model/model.safetensors",
        "optimizer.safetensors",
        "critic/model.safetensors",
        "prm/model/config.json",
    ):
        (step.out / name).parent.mkdir(parents=True, exist_ok=True)
        (step.out / name).write_text(name)
    step.write_table(METRICS, ROWS)
    step.finish()
    return step.out


def plan(trained, **recipe):
    return Plan("rollout", {"engine": {"name": "auto"}, **recipe}, 1, {"policy": Input(trained, WEIGHTS)})


def finish(out, made):
    step = Step.open(out, made)
    step.write_shards(0, {METRICS: ROWS})
    (out / "model").mkdir()
    (out / "model" / "model.safetensors").write_bytes(b"weights")
    step.finish()
    return out


def test_a_step_is_up_to_date_whatever_the_rest_of_its_plan_says(trained, tmp_path):
    recipe = {"engine": {"name": "vllm"}, "vocabulary": "abc"}
    out = finish(tmp_path / "out", replace(plan(trained), recipe=recipe, origin={"name": "digits"}))

    assert standing(out, plan(trained)).manifest["step"] == "rollout"
    assert standing(out, plan(trained, engine={"name": "transformers"})).changed == ["recipe.engine.name"]
    assert standing(out, plan(trained, rollout={"temperature": 1})).changed == ["recipe.rollout"]
    assert standing(out, replace(plan(trained), seed=2)).changed == ["seed"]


def test_names_of_an_output_are_not_compared_with_each_other(trained, tmp_path, monkeypatch):
    """It may have ten thousand shards."""
    step = Step.open(tmp_path / "out", plan(trained))
    for number in range(100):
        (step.out / f"{number}.txt").write_text("x")
    step.finish()
    compared = []
    monkeypatch.setattr(fingerprint, "fnmatchcase", lambda *names: (compared.append(names), fnmatchcase(*names))[1])
    assert standing(step.out, plan(trained)).manifest is not None
    assert len(compared) < 100


def test_an_output_without_its_old_weights_is_up_to_date_and_tells_it(trained, tmp_path):
    out = finish(tmp_path / "out", plan(trained))
    shutil.rmtree(trained / "model")
    (out / "model" / "model.safetensors").unlink()

    found = standing(out, plan(trained))
    assert (found.manifest["step"], found.gone) == ("rollout", ["model/model.safetensors"])


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x")])
def test_a_table_that_is_gone_or_changed_is_told(damage, trained, tmp_path):
    out = finish(tmp_path / "out", plan(trained))
    damage(out / "metrics-00000.parquet")
    with pytest.raises(ArtifactError, match=r"metrics-00000\.parquet: .*; run the command that made it again"):
        standing(out, plan(trained))


@pytest.mark.parametrize("lost", BESIDE)
def test_sampling_asks_for_the_weights_alone(lost, trained, tmp_path):
    out = finish(tmp_path / "out", plan(trained))
    (trained / lost).unlink()
    (trained / "metrics.parquet").write_bytes(b"damaged")

    check_input(trained, WEIGHTS)
    assert standing(out, plan(trained)).manifest is not None
    (trained / "model" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"model/model\.safetensors: 7 bytes instead of 23"):
        check_input(trained, WEIGHTS)


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        ([], {OPTIMIZER_STATE}),
        (["trainer.lora={rank: 2, alpha: 2}"], set()),
        (["trainer.lora={rank: 2, alpha: 2}", "model.dtype=bfloat16"], {OPTIMIZER_STATE}),
        (
            ["train.objective.algorithm=ppo", "masks.on_no_correct=repair"],
            {OPTIMIZER_STATE, f"{CRITIC}/model.safetensors"},
        ),
        (["train.gate=none", "train.advantage=prime"], {OPTIMIZER_STATE, f"{PRM}/model/config.json"}),
    ],
)
def test_training_asks_for_what_it_goes_on_from(settings, read, trained):
    declared = declare_train_policy(load_recipe("digits", settings), trained, trained, trained)
    reads = reads_of(declared.inputs["policy"])
    for name in BESIDE:
        content = (trained / name).read_text()
        (trained / name).write_text("other")
        if name in read:
            with pytest.raises(ArtifactError, match=name):
                check_input(trained, reads)
        else:
            check_input(trained, reads)
        (trained / name).write_text(content)
    assert "model/*" in reads


def test_an_output_that_is_not_finished_goes_on(trained, tmp_path):
    out = finish(tmp_path / "out", plan(trained))
    (out / MANIFEST).unlink()
    found = standing(out, plan(trained))
    assert (found.manifest, found.changed) == (None, ())


def test_what_failed_before_its_first_row_is_in_nobodys_way(tmp_path):
    first = Step.open(tmp_path / "out", Plan("rollout", {"a": 1}, 0, {}))
    first.write_shards(0, {METRICS: []})
    assert not holds_work(tmp_path / "out")
    assert not Step.open(tmp_path / "out", Plan("rollout", {"a": 2}, 0, {})).has_shard(METRICS, 0)

    Step.open(tmp_path / "out", Plan("rollout", {"a": 2}, 0, {})).write_shards(0, {METRICS: ROWS})
    assert holds_work(tmp_path / "out")
    with pytest.raises(ArtifactError, match=r"made with other recipe\.a; give --overwrite"):
        Step.open(tmp_path / "out", Plan("rollout", {"a": 3}, 0, {}))


def test_a_checkpoint_is_work(tmp_path):
    step = Step.open(tmp_path / "out", Plan("sft-repair", {"a": 1}, 0, {}))
    step.save_checkpoint(lambda folder: (folder / "state").write_text("x"))
    with pytest.raises(ArtifactError, match=r"made with other recipe\.a"):
        Step.open(tmp_path / "out", Plan("sft-repair", {"a": 2}, 0, {}))


def test_bad_rows_that_were_dropped_are_no_secret_to_who_drops_none(trained, tmp_path):
    from stages.artifacts.bad_rows import BadRow

    out = finish(tmp_path / "out", replace(plan(trained), dropped=[BadRow("p", "null_answer", "why")]))
    assert standing(out, plan(trained), "drop").manifest is not None
    assert standing(out, plan(trained), "fail").manifest is None


GIVEN = {
    "repair-set sheet": {"problems": Path("problems"), "policy": Path("policy"), "count": 3},
    "repair-set read": {"sheet": Path("sheet"), "annotated": Path("labels.csv"), "policy": Path("policy")},
    "sft-repair": {"repair_set": Path("set"), "model": Path("policy")},
    "rl-repair": {"problems": Path("problems"), "policy": Path("policy"), "repair_model": Path("sft")},
    "rollout": {"problems": Path("problems"), "policy": Path("policy")},
    "build-masks": {"rollouts": Path("rollouts"), "repair_model": Path("rl"), "policy": Path("policy")},
    "train-policy": {"groups": Path("groups"), "problems": Path("problems"), "policy": Path("policy")},
    "evaluate": {"problems": Path("problems"), "model": Path("policy")},
}
REPAIRS = {"sft-repair", "rl-repair", "build-masks"}
READ_BY = {
    "prompt.instruction=Answer.": GIVEN.keys() - {"repair-set read"},
    "prompt.repair_instruction=Mend it.": REPAIRS,
    "prompt.references=[answer, preferred]": REPAIRS,
    "audit.rewrite_share=0.4": REPAIRS,
    "repair_rl.blank=noise": {"rl-repair", "evaluate"},
    "train.optimizer.learning_rate=1": {"train-policy"},
    "train.half_life=3": set(),
    "train.prime.beta=0.1": set(),
}


def declared(command, *settings):
    return DECLARED[command](load_recipe("digits", settings), **GIVEN[command])


@pytest.mark.parametrize("setting", READ_BY)
def test_a_step_depends_on_the_fields_that_it_reads_and_on_no_others(setting):
    assert GIVEN.keys() == DECLARED.keys()
    changed = {command for command in GIVEN if declared(command).recipe != declared(command, setting).recipe}
    assert changed == READ_BY[setting]


def test_what_is_off_is_not_read():
    assert "repair_rl" not in declared("evaluate", "evaluate.image_removed=false").recipe
    siblings = declared("build-masks", "masks.repairer=sibling").recipe
    assert siblings["prompt"].keys() == {"instruction"}
    assert "audit" not in siblings
    assert declared("train-policy", "train.gate=soft", "train.half_life=3").recipe["train"]["half_life"] == 3
    prime = declared("train-policy", "train.gate=none", "train.advantage=prime", "train.prime.beta=0.1").recipe
    assert prime["train"]["prime"]["beta"] == 0.1


def test_the_code_of_ones_own_reward_is_an_input(trained, tmp_path, monkeypatch):
    """With other code the same responses have other rewards."""
    monkeypatch.syspath_prepend(tmp_path)
    code, own = tmp_path / "reward_of_mine.py", "reward.name=reward_of_mine:own"
    code.write_text("def own(response, problem):\n    return 1.0\n")
    assert {command for command in GIVEN if declared(command, own).inputs.get("reward") == code} == GIVEN.keys() - {
        "train-policy"
    }

    made = declare_rollout(load_recipe("digits", [own]), trained, trained)
    out = finish(tmp_path / "out", made)
    assert standing(out, replace(made)).manifest is not None
    code.write_text("def own(response, problem):\n    return 0.5\n")
    assert standing(out, replace(made)).changed == ["inputs.reward"]


def test_a_reward_function_that_is_not_there_is_no_input():
    assert "reward" not in declared("rollout", "reward.name=no_such_package.no_such_module:own").inputs
    assert "reward" not in declared("rollout").inputs


def test_the_plan_of_a_stage_is_what_was_declared(base_dir, digits):
    from stages.s3_rollout import Rollout

    recipe = load_recipe("digits", ["rollout.problems=4"])
    problems = digits / "problems_test.parquet"
    made = Rollout(recipe, problems, base_dir).plan().record()
    declared = declare_rollout(recipe, problems, base_dir).record()
    vocabulary, policy = (made["recipe"].pop(name) for name in ("vocabulary", "policy"))
    assert (made, len(vocabulary), policy.keys()) == (declared, 64, {"weights", "prompts"})
    assert ROLLOUTS.name not in declared["inputs"]


@pytest.mark.parametrize(("dtype", "is_read"), [("float32", False), ("bfloat16", True)])
def test_training_a_repair_model_asks_for_the_float32_weights_behind_rounded_ones(dtype, is_read, trained):
    recipe = load_recipe("digits", [f"model.dtype={dtype}"])
    sft = declare_sft_repair(recipe, trained, trained).inputs["model"]
    rl = declare_rl_repair(recipe, trained, trained, trained).inputs["repair_model"]
    assert [OPTIMIZER_STATE in reads_of(given) for given in (sft, rl)] == [is_read] * 2
