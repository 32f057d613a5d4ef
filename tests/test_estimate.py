"""What a command holds, told before it runs: from the published sizes of Qwen2.5-VL, worked out by hand."""

from pathlib import Path

import pytest

from stages.estimate import LoopEstimate, _gib, _on_disk, on_device
from stages.model.architecture import empty_model
from stages.model.footprint import size_of
from stages.recipe import RECIPES, load_recipe
from stages.what_fits import COMMANDS, FREE, PUBLISHED, with_table

GIB = 2**30


@pytest.fixture(scope="module")
def sizes():
    return {name: size_of(empty_model(config, trust_remote_code=False)) for name, config in PUBLISHED.items()}


def need(command, recipe, size, shards=1):
    return on_device(command, recipe, dict.fromkeys(("policy", "model", "repair_model"), size), shards)


def test_a_rollout_holds_weights_and_a_cache(sizes):
    recipe = load_recipe("qwen2.5-vl-7b-gspo", ["engine.name=transformers"])
    told = need("rollout", recipe, sizes["7B"])
    assert told.rest == {"policy samples": {"weights": 2 * 8_292_166_656}}
    # 28 layers of keys and values of 4 heads of 128 in 2 bytes, for 4 rows of 1,024 and 2,048 tokens.
    assert told.work["policy samples"]["keys_and_values"] == 4 * (1024 + 2048) * 28 * 2 * 4 * 128 * 2


def test_a_whole_model_in_training_takes_16_bytes_a_weight_and_a_shard_its_part(sizes):
    recipe = load_recipe("qwen2.5-vl-7b-gspo")
    for shards in (1, 8):
        rest = need("train-policy", recipe, sizes["7B"], shards).rest["policy trains"]
        assert sum(rest.values()) == pytest.approx(16 * 8_292_166_656 / shards, rel=1e-9)


@pytest.mark.parametrize(
    ("settings", "gib"),
    [
        # 8,292,166,656 weights, of which embeddings and norms, 545,284,864, enter sums and stay float32.
        ([], {"model": 16.46, "optimizer": 61.78, "masters": 28.86, "checkpoints_until_it_is_done": 185.34}),
        (["model.dtype=float32"], {"model": 30.89, "optimizer": 61.78, "checkpoints_until_it_is_done": 185.34}),
    ],
)
def test_a_step_writes_the_model_in_the_recipes_type_and_float32_beside_it(settings, gib, sizes):
    recipe = load_recipe("qwen2.5-vl-7b-gspo", settings)
    assert _gib(_on_disk("train-policy", recipe, {"policy": sizes["7B"]})) == gib


def test_prime_trains_a_second_policy(sizes):
    recipe = load_recipe("qwen2.5-vl-7b-gspo", ["train.gate=none", "train.advantage=prime"])
    rest = need("train-policy", recipe, sizes["7B"]).rest
    assert [sum(rest[f"{name} trains"].values()) for name in ("policy", "process_reward_model")] == [
        pytest.approx(16 * 8_292_166_656, rel=1e-9)
    ] * 2


def test_adapters_leave_2_bytes_a_weight_and_4_of_embeddings_and_norms(sizes):
    recipe = load_recipe("qwen2.5-vl-7b-gspo", ["trainer.lora={rank: 16, alpha: 32}"])
    rest = need("train-policy", recipe, sizes["7B"]).rest["policy trains"]
    hidden, keys, mlp, layers = 3584, 512, 18_944, 28
    # Inputs and outputs of query and output, key and value, gate, up and down.
    adapters = 16 * layers * (2 * 2 * hidden + 2 * (hidden + keys) + 3 * (hidden + mlp))
    # Embeddings; two norms a layer and the last; two norms of 1280 in 32 layers of the vision tower and its merger's.
    kept = 152_064 * hidden + (2 * layers + 1) * hidden + (2 * 32 + 1) * 1280
    assert rest["weights"] == 2 * (8_292_166_656 - kept) + 4 * kept + 4 * adapters
    assert (rest["gradients"], rest["moments"]) == (4 * adapters, 8 * adapters)


def test_commands_hold_what_they_open(sizes):
    recipe = load_recipe("qwen2.5-vl-3b-lora-24gb")
    held = {command: set(need(command, recipe, sizes["3B"]).rest) for command in COMMANDS}
    assert held == {
        "sft-repair": {"model trains", "model samples"},
        "rl-repair": {"policy samples", "repair_model trains"},
        "rollout": {"policy samples"},
        "build-masks": {"repair_model samples", "policy scores"},
        "train-policy": {"policy trains"},
        "evaluate": {"model samples"},
    }
    whole = load_recipe("qwen2.5-vl-7b-gspo", ["train.objective.kl_coef=0.1", "masks.repairer=sibling"])
    assert set(need("train-policy", whole, sizes["7B"]).rest) == {"policy trains", "policy_reference scores"}
    assert set(need("build-masks", whole, sizes["7B"]).rest) == {"policy scores"}


WHOLE = 8_292_166_656
"""Weights of the 7B model."""
ROUNDED = 2 * WHOLE + 2 * 545_284_864
"""Bytes in bfloat16 of a copy that computes as the trained model: embeddings and norms stay float32."""


def loop_holds(settings, size):
    """Bytes between passes, by step."""
    recipe = load_recipe("qwen2.5-vl-7b-gspo", ["engine.name=transformers", "loop.repair_rl_every=2", *settings])
    told = LoopEstimate(recipe, {"policy": size, "repair_model": size}, rounds=9, has_best=True).on_device(1)
    return {step: sum(sum(part.values()) for part in told[step].rest.values()) for step in BUSY}


BUSY = ("build-masks", "train-policy", "rl-repair")


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        # Two samplers of 2 bytes a weight; of the policy's trainer 16, between its steps 12; the repair model's 16.
        pytest.param([], (4 + 12, 4 + 16, 4 + 12 + 16), id="whole"),
        # The policy's sampler is what is trained, and so is, while it is trained, the repair model's.
        pytest.param(["model.dtype=float32"], (4 + 12, 4 + 16, 12 + 16), id="float32"),
        # Its trainer is not kept: the weights alone stay.
        pytest.param(
            ["train.objective.algorithm=ppo", "masks.on_no_correct=repair"], (4 + 4, 4 + 16, 4 + 4 + 16), id="critic"
        ),
    ],
)
def test_a_loop_holds_the_models_of_all_its_steps(settings, held, sizes):
    expected = {step: bytes_a_weight * WHOLE for step, bytes_a_weight in zip(BUSY, held, strict=True)}
    assert loop_holds(settings, sizes["7B"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        pytest.param("start", (16 * WHOLE + ROUNDED, 20 * WHOLE + ROUNDED, 32 * WHOLE + 2 * ROUNDED), id="kept"),
        pytest.param("previous", (8 * WHOLE, 20 * WHOLE + ROUNDED, 24 * WHOLE + ROUNDED), id="opened for a step"),
    ],
)
def test_a_loop_holds_what_its_kl_compares_with(reference, expected, sizes):
    settings = ["train.objective.kl_coef=0.1", f"train.kl_reference={reference}"]
    assert loop_holds(settings, sizes["7B"]) == pytest.approx(dict(zip(BUSY, expected, strict=True)), rel=1e-9)


def test_a_loop_opens_a_policy_with_adapters_anew(sizes):
    """A sampler and a scorer lie beside what trains, until they are older than it."""
    adapters = 16 * 28 * (2 * 2 * 3584 + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    trains = ROUNDED + 16 * adapters
    assert loop_holds(["trainer.lora={rank: 16, alpha: 32}"], sizes["7B"]) == {
        "build-masks": 4 * WHOLE + ROUNDED,
        "train-policy": 4 * WHOLE + ROUNDED + trains,
        "rl-repair": 4 * WHOLE + trains,
    }


def test_a_loop_beside_vllm_holds_what_scores_and_trains(sizes, monkeypatch):
    """vLLM's engines take the share that they are given."""
    monkeypatch.setattr("stages.estimate.engine_name", lambda _recipe: "vllm")
    expected = {"build-masks": 12 * WHOLE, "train-policy": 16 * WHOLE + ROUNDED, "rl-repair": 28 * WHOLE}
    assert loop_holds([], sizes["7B"]) == pytest.approx(expected, rel=1e-9)


def test_a_loop_tells_the_step_that_holds_most(sizes):
    """On the host what is saved, weights and moments; on disk the rounds that are kept, the best and the next one."""
    settings = ["engine.name=transformers", "loop.keep_rounds=3"]
    for every, step, bytes_a_weight in (("null", "train-policy", 20), ("2", "rl-repair", 32)):
        recipe = load_recipe("qwen2.5-vl-7b-gspo", [*settings, f"loop.repair_rl_every={every}"])
        models = {"policy": sizes["7B"], "repair_model": sizes["7B"]}
        told = LoopEstimate(recipe, models, rounds=9, has_best=True).gib()
        device = told["device_gib"]
        assert device["during"] == step
        assert sum(sum(part.values()) for part in device["at_rest"].values()) == pytest.approx(
            bytes_a_weight * WHOLE / GIB, abs=0.1
        )
        assert device["at_most"] > bytes_a_weight * WHOLE / GIB
        assert told["host_gib"] == {"saving": pytest.approx(12 * WHOLE / GIB, abs=0.01)}
        # 16.46 of the model, 61.78 of moments, 28.86 of float32 weights; two checkpoints of 92.67.
        step_gib = 16.46 + 61.78 + 28.86
        repairs = {} if every == "null" else {"repair_models": pytest.approx(step_gib, abs=0.02)}
        assert (
            told["disk_gib"]
            == {
                "policies": pytest.approx(5 * step_gib, abs=0.1),
                "checkpoints_until_it_is_done": pytest.approx(185.34, abs=0.01),
            }
            | repairs
        )


def test_shards_are_whole_where_they_sample(sizes):
    recipe = load_recipe("qwen2.5-vl-32b-gspo")
    work = need("rl-repair", recipe, sizes["32B"], 8).work
    assert work["repair_model samples"]["gathered"] == 4 * 33_452_718_336
    # Embeddings, head and two layers of 487 million weights.
    assert work["repair_model trains"]["gathered"] == pytest.approx(4 * (2 * 152_064 * 5120 + 2 * 487.6e6), rel=0.01)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_consumer_recipe_fits_24_gb(command, sizes):
    assert need(command, load_recipe("qwen2.5-vl-3b-lora-24gb"), sizes["3B"]).most <= 24 * GIB * (1 - FREE)


def test_a_7b_with_adapters_trains_in_24_gb(sizes):
    settings = ["trainer.lora={rank: 16, alpha: 32}", "trainer.tokens_per_micro_batch=2048"]
    recipe = load_recipe("qwen2.5-vl-7b-gspo", settings)
    assert need("train-policy", recipe, sizes["7B"]).most <= 24 * GIB * (1 - FREE)


def test_the_table_of_what_fits_is_up_to_date():
    text = Path(RECIPES / "README.md").read_text(encoding="utf-8")
    assert text == with_table(text), "run: python -m stages.what_fits stages/recipes/README.md"
    assert "| 7B | LoRA | `train-policy` |" in text
