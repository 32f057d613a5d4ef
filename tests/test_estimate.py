"""What a command holds, told before it runs: from the published sizes of Qwen2.5-VL, worked out by hand."""

import re
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from transformers import InternVLConfig

from stages.artifacts.columns import FLOATS, GROUPS, IDS, MASK, REPAIRS, ROLLOUTS, SCORES
from stages.artifacts.store import write_rows
from stages.engines.vllm_room import check_room, room
from stages.errors import RecipeError
from stages.estimate import (
    LoopEstimate,
    Machine,
    _gib,
    _on_disk,
    on_device,
    on_host,
    tables,
    tell_what_is_too_much,
)
from stages.model.architecture import empty_model
from stages.model.footprint import size_of
from stages.recipe import RECIPES, load_recipe
from stages.sections import VllmSection
from stages.what_fits import COMMANDS, FREE, PUBLISHED, with_table

GIB = 2**30
H100 = 79 * GIB
"""What is to be had of its 80 GB."""


@pytest.fixture(scope="module")
def sizes():
    configurations = PUBLISHED | {"InternVL": INTERNVL}
    return {name: size_of(empty_model(config, trust_remote_code=False)) for name, config in configurations.items()}


INTERNVL = InternVLConfig(
    text_config={
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": 4096,
        "intermediate_size": 12_288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "tie_word_embeddings": False,
    },
    vision_config={
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": [14, 14],
        "image_size": [448, 448],
    },
)
"""The sizes in the config.json of InternVL3.5-8B."""


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
    """What samples and scores with the weights that are about to change is closed before they do."""
    adapters = 16 * 28 * (2 * 2 * 3584 + 2 * (3584 + 512) + 3 * (3584 + 18_944))
    trains = ROUNDED + 16 * adapters
    assert loop_holds(["trainer.lora={rank: 16, alpha: 32}"], sizes["7B"]) == {
        "build-masks": 4 * WHOLE + ROUNDED,
        "train-policy": 2 * WHOLE + trains,
        "rl-repair": 2 * WHOLE + trains,
    }


def test_a_loop_beside_vllm_holds_what_scores_and_trains(sizes, monkeypatch):
    """vLLM's engines take the share that they are given."""
    monkeypatch.setattr("stages.estimate.engine_name", lambda _recipe: "vllm")
    expected = {"build-masks": 12 * WHOLE, "train-policy": 16 * WHOLE, "rl-repair": 28 * WHOLE}
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
        assert told["host_gib"]["saving"] == pytest.approx(12 * WHOLE / GIB, abs=0.01)
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
    recipe = load_recipe("qwen2.5-vl-32b-gspo", ["engine.name=transformers", "trainer.lora=null"])
    work = need("rl-repair", recipe, sizes["32B"], 8).work
    assert work["repair_model samples"]["gathered"] == 4 * 33_452_718_336
    # Embeddings, head and two layers of 487 million weights.
    assert work["repair_model trains"]["gathered"] == pytest.approx(4 * (2 * 152_064 * 5120 + 2 * 487.6e6), rel=0.01)


@pytest.mark.parametrize(
    ("step", "shards", "told"),
    [
        # 2 bytes a weight that samples, 2 of eight shards of 16, 4 of the weights gathered, and a pass.
        (
            "rl-repair",
            8,
            r"rl-repair takes 25\d\.\d GiB of a device that has 79\.0; it gathers .* leave the launcher out",
        ),
        ("train-policy", 1, r"train-policy takes 5\d\d\.\d GiB of a device that has 79\.0; set trainer\.lora"),
        ("rollout", 1, None),
    ],
)
def test_a_step_that_takes_more_than_a_device_has_says_so(step, shards, told, sizes, caplog):
    recipe = load_recipe("qwen2.5-vl-32b-gspo", ["engine.name=transformers", "trainer.lora=null"])
    tell_what_is_too_much(step, need(step, recipe, sizes["32B"], shards), Machine(shards, shards, 1, H100))
    assert re.search(told, caplog.text) if told else not caplog.text


@pytest.fixture
def with_vllm(monkeypatch):
    """Recipes that do not name an engine get vLLM, as they do on a machine with a GPU where it is installed."""
    monkeypatch.setattr("stages.estimate.engine_name", lambda recipe: recipe.engine.name.replace("auto", "vllm"))


BESIDE = {"build-masks": 2, "rl-repair": 2}
"""vLLM's engines by command, where they have no device to themselves."""


@pytest.mark.usefixtures("with_vllm")
@pytest.mark.parametrize(
    ("name", "size", "shards", "spread", "engines"),
    [
        ("qwen2.5-vl-7b-gspo", "7B", 8, 1, BESIDE),
        ("internvl3.5-8b-grpo", "InternVL", 8, 1, {}),
        ("qwen2.5-vl-32b-gspo", "32B", 1, 8, BESIDE),
    ],
)
def test_a_shipped_recipe_leaves_each_engine_a_cache_and_its_device_a_tenth(
    name, size, shards, spread, engines, sizes, monkeypatch
):
    """A tenth of 80 GB; each engine holds more than one sequence as long as it takes, the embedded its rows."""
    monkeypatch.setattr("stages.runtime.processes.count", lambda: shards)
    recipe, machine = load_recipe(name, ["loop.repair_rl_every=2"]), {"spread": spread, "device": H100}
    models = dict.fromkeys(("policy", "model", "repair_model"), sizes[size])
    told = {step: on_device(step, recipe, models, shards, **machine) for step in COMMANDS if step != "sft-repair"}
    alone = {step: told.pop(step) for step in ("rollout", "evaluate")}
    assert {step: len(need.rooms) for step, need in told.items() if need.rooms} == engines
    looped = LoopEstimate(recipe, models, rounds=9, has_best=True).on_device(shards, **machine)
    for need in (*alone.values(), *told.values(), *looped.values()):
        assert all(room.sequences > 1.5 for room in need.rooms.values())
        assert need.most <= (1 - FREE) * H100
    if engines:
        assert {need.most for need in alone.values()} == {int(0.9 * H100)}


@pytest.mark.usefixtures("with_vllm")
def test_a_quarter_of_80_gb_leaves_a_7b_no_cache(sizes, caplog):
    """28 layers of keys and values of 4 heads of 128, in 2 bytes, are 0.88 GiB for 16,384 tokens."""
    recipe = load_recipe("qwen2.5-vl-7b-gspo", ["engine.vllm.gpu_memory_utilization=0.25"])
    rooms = on_device("build-masks", recipe, {"policy": sizes["7B"], "repair_model": sizes["7B"]}, 1, device=H100).rooms
    assert rooms["policy samples"].sequence == 16_384 * 28 * 2 * 4 * 128 * 2
    assert rooms["policy samples"].weights == 2 * WHOLE
    check_room("build-masks", rooms["policy samples"])
    assert "one sequence of 16384 tokens 0.9; raise engine.vllm.gpu_memory_utilization" in caplog.text


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        pytest.param({"gpu_memory_utilization": 0.2, "max_model_len": 8192}, 79, id="share"),
        pytest.param({"gpu_memory_utilization": 0.21}, 79, id="length of the model"),
        pytest.param({"gpu_memory_utilization": 0.9, "max_model_len": 4096}, 16, id="device"),
    ],
)
def test_an_engine_whose_weights_and_one_sequence_are_more_than_its_share_is_refused(settings, device, sizes):
    with pytest.raises(RecipeError, match=r"^policy: vLLM's share .* or set engine\.name=transformers$"):
        check_room("policy", room(sizes["7B"], VllmSection(**settings), "bfloat16", device * GIB))


@pytest.mark.usefixtures("with_vllm")
def test_an_engine_that_nothing_generates_with_is_not_opened(sizes):
    for auditor, engines in (("rules", {"policy samples", "repair_model samples"}), ("none", {"repair_model samples"})):
        recipe = load_recipe("qwen2.5-vl-7b-gspo", [f"audit.auditor={auditor}"])
        models = {"policy": sizes["7B"], "repair_model": sizes["7B"]}
        assert set(on_device("build-masks", recipe, models, 1, device=H100).rooms) == engines


def test_the_host_holds_images_of_the_prompts_at_once(sizes, monkeypatch):
    """4 patches a token, each of 3 channels of 14 × 14, twice, in float32; prompts are taken as 1,024 such tokens."""
    recipe, models = load_recipe("qwen2.5-vl-7b-gspo"), dict.fromkeys(("policy", "repair_model"), sizes["7B"])
    of_a_prompt = 1024 * 4 * 3 * 14 * 14 * 2 * 4
    # 16,384 tokens of prompts are read at once; a shard's 32 problems are scored; a step trains on those of 16.
    for step, prompts in (("rollout", 16), ("build-masks", 32), ("train-policy", 16)):
        assert on_host(step, recipe, models, 8, 1)["pixels"] == 8 * prompts * of_a_prompt
    monkeypatch.setattr("stages.estimate.engine_name", lambda _recipe: "vllm")
    assert on_host("rollout", recipe, models, 8, 1) == {
        "pixels": 8 * 256 * of_a_prompt,
        "vllm_image_caches": 8 * 8 * GIB,
    }
    assert on_host("build-masks", recipe, models, 1, 1)["vllm_image_caches"] == 2 * 8 * GIB


def row_of(spec, tokens, rng):
    """A row with numbers and text for so many tokens, which do not repeat: four letters a token, as English has."""
    values = {
        IDS: rng.integers(0, 150_000, tokens).tolist(),
        FLOATS: (-rng.exponential(size=tokens)).tolist(),
        MASK: (rng.random(tokens) < 0.5).tolist(),
        pa.string(): "".join(rng.choice(list(string.printable), 4 * tokens)),
        pa.int32(): 0,
        pa.float32(): 0.5,
        pa.bool_(): True,
    }
    short = {column.name: "stop" for column in spec.columns if column.type == pa.string() and column.name != "text"}
    kept = [column for column in spec.columns if not column.optional or column.name == "sampler_logprobs"]
    return {column.name: short.get(column.name, values[column.type]) for column in kept}


@pytest.mark.parametrize(
    ("step", "spec", "rows"),
    [("rollout", ROLLOUTS, 8), ("build-masks", GROUPS, 2), ("build-masks", REPAIRS, 2), ("evaluate", SCORES, 10)],
)
def test_tables_of_the_longest_responses_are_within_a_third_of_what_is_told(step, spec, rows, tmp_path):
    """Of ten problems or rollouts with 2,000 tokens a response; a hundredth is Parquet's own."""
    rng, recipe = np.random.default_rng(0), load_recipe("qwen2.5-vl-7b-gspo", ["rollout.max_new_tokens=2000"])
    write_rows(tmp_path / "table.parquet", spec, [row_of(spec, 2000, rng) for _ in range(10 * rows)])
    told = tables(step, recipe, 10)[spec.name]
    assert told * 2 / 3 < (tmp_path / "table.parquet").stat().st_size <= 1.01 * told


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
