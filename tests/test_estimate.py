"""What a command holds, told before it runs: from the published sizes of Qwen2.5-VL, worked out by hand."""

from pathlib import Path

import pytest

from stages.estimate import _gib, _on_disk, on_device
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
