"""The formula of what a model takes, beside what small models are seen to take."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from stages.model.architecture import empty_model
from stages.model.batches import EncodedPrompt, encode_prompt
from stages.model.footprint import masters, size_of, trained_elements, training
from stages.model.key_value_cache import KeyValueCache
from stages.model.layout import Reading, padded_layout
from stages.model.loading import load_model
from stages.model.logprobs import TokenLogprobs
from stages.model.mixed_precision import rounded_weights, trained_weights
from stages.model.prompts import policy_prompt
from stages.sections import LoraSection, OptimizerSection, TrainerSection
from stages.training.losses import SupervisedLoss
from stages.training.trainer import OPTIMIZER_STATE, Trainer, TrainingRow
from stages.training.weights import prepare_weights
from stages.what_fits import PUBLISHED

SECTIONS = {
    "all": TrainerSection(),
    "text": TrainerSection(freeze_vision=True),
    "adapters": TrainerSection(lora=LoraSection(rank=4)),
}
PROMPT = EncodedPrompt(list(range(10, 26)) * 8, [0] * 128, {})
READING = Reading(PROMPT, list(range(10, 26)) * 8)
TOKENS = 256


def bytes_of(tensors):
    return sum(tensor.nbytes for tensor in tensors)


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    request.getfixturevalue(request.param).save(folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("section", SECTIONS.values(), ids=SECTIONS)
def test_weights_gradients_and_optimizer_are_counted_to_the_byte(folder, section, dtype):
    vlm = load_model(folder, dtype=dtype, trained=trained_weights(section))
    told = training(size_of(vlm.model), section, dtype)
    trainer = Trainer(vlm, OptimizerSection(), temperature=1.0, machine=section)
    trainer.step([TrainingRow(PROMPT, READING.ids, "repair")], SupervisedLoss())
    weights = list(vlm.model.parameters())
    assert told.weights == bytes_of(weights)
    # The vision tower has no gradient where no row has an image.
    learns = [weight for weight in weights if weight.requires_grad]
    assert told.gradients == 4 * sum(weight.numel() for weight in learns)
    moments = [(state["exp_avg"], state["exp_avg_sq"]) for state in trainer.optimizer.state.values()]
    stepped = [weight for weight in learns if weight in trainer.optimizer.state]
    assert bytes_of(m for pair in moments for m in pair) == 8 * sum(weight.numel() for weight in stepped)
    assert told.moments == 8 * sum(weight.numel() for weight in learns)
    if section.freeze_vision or section.lora:
        assert len(stepped) == len(learns)


@pytest.mark.parametrize("trained", ["all", "text"])
def test_moments_in_eight_bits_are_counted_to_a_hundredth(folder, trained):
    """Tables of 256 numbers, one for each moment of a step, are shared by all weights."""
    section = SECTIONS[trained].model_copy(update={"optimizer_bits": 8})
    vlm = load_model(folder, trained=trained)
    trainer = Trainer(vlm, OptimizerSection(), temperature=1.0, machine=section)
    for weight in vlm.model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    trainer.optimizer.step()
    states = [trainer.parallel.optimizer_state(weight) for weight in vlm.model.parameters()]
    held = bytes_of(value for state in states for name, value in state.items() if name != "step")
    told = training(size_of(vlm.model), section, "float32").moments
    assert told == pytest.approx(held, rel=0.01)
    assert told < 0.9 * training(size_of(vlm.model), SECTIONS[trained], "float32").moments


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_in_four_bits_are_counted_to_a_hundredth(tiny_vlm, tmp_path, dtype):
    """Scales of fewer than 256 blocks take as many bytes as those of 256 do."""
    tiny_vlm.save(tmp_path)
    section = TrainerSection(lora=LoraSection(rank=4, bits=4))
    vlm = load_model(tmp_path, dtype=dtype, trained="none", quantized=True)
    told = training(size_of(vlm.model), section, dtype)
    prepare_weights(vlm, section, seed=0)
    weights = list(vlm.model.parameters())
    states = [weight.quant_state for weight in weights if hasattr(weight, "quant_state")]
    scales = [tensor for state in states for tensor in (state.absmax, state.state2.absmax)]
    assert len(states) == 7 * vlm.model.config.get_text_config().num_hidden_layers
    assert told.weights == pytest.approx(bytes_of(weights) + bytes_of(scales), rel=0.01)
    whole = training(size_of(load_model(tmp_path, dtype=dtype, trained="none").model), SECTIONS["adapters"], dtype)
    assert told.weights < 0.9 * whole.weights


def kept_for_backward(vlm):
    """Bytes that a pass leaves to its backward pass, weights and their casts left out."""
    shapes = {weight.shape for weight in vlm.model.parameters()} | {w.T.shape for w in vlm.model.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.shape not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    vlm.model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs_N, *_ = TokenLogprobs(vlm)(padded_layout(vlm, [READING]), 1.0)
    assert logprobs_N.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("section", [SECTIONS["text"], SECTIONS["adapters"]], ids=["text", "adapters"])
def test_activations_of_a_layer_are_within_a_tenth(tiny_vlm, section, dtype):
    """From models of two depths, of which the difference is that of layers."""
    found = []
    for layers in (1, 3):
        model = copy.deepcopy(tiny_vlm.model)
        del model.get_decoder().layers[layers:]
        rounded = rounded_weights(model, trained_weights(section)) if dtype == "bfloat16" else frozenset()
        for name in rounded:
            weight = model.get_parameter(name)
            weight.data = weight.data.bfloat16()
        autocast = torch.bfloat16 if dtype == "bfloat16" else None
        vlm = replace(tiny_vlm, model=model, autocast_dtype=autocast, rounded=rounded)
        prepare_weights(vlm, section, 0)
        found.append(kept_for_backward(vlm))
    rank = 0 if section.lora is None else section.lora.rank
    told = size_of(tiny_vlm.model).text.saved(2 if dtype == "bfloat16" else 4, frozen=rank > 0, rank=rank)
    assert (found[1] - found[0]) / 2 == pytest.approx(TOKENS * told, rel=0.1)


def test_keys_and_values_are_those_of_the_cache(tiny_vlm):
    text = tiny_vlm.model.config.get_text_config()
    cache = KeyValueCache(rows=5)
    cache.reserve(64)
    new = torch.zeros(1, text.num_key_value_heads, text.hidden_size // text.num_attention_heads)
    for layer in range(text.num_hidden_layers):
        cache.write(layer, torch.zeros(1, dtype=torch.long), new, new)
    held = bytes_of(side for pair in cache._layers.values() for side in pair)
    assert size_of(tiny_vlm.model).keys_and_values("float32", rows=5, tokens=64) == held


@pytest.mark.parametrize("family", ["tiny_vlm", "tiny_internvl"])
def test_pixels_are_counted_to_the_byte(family, request, problems, recipe):
    """Of a token that stands for a part of an image; InternVL's images are cut into tiles of one size."""
    vlm = request.getfixturevalue(family)
    prompt = encode_prompt(vlm, policy_prompt(vlm.processor, recipe.prompt, problems[0]))
    tokens = prompt.ids.count(vlm.model.config.image_token_id)
    assert tokens
    assert size_of(vlm.model).pixel_bytes * tokens == prompt.vision["pixel_values"].nbytes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", ["all", "text", "adapters"])
def test_files_are_counted_to_the_byte(folder, tmp_path, dtype, trained):
    section = SECTIONS[trained]
    vlm = load_model(folder, dtype=dtype, trained=trained_weights(section))
    size = size_of(vlm.model)
    trainer = Trainer(vlm, OptimizerSection(), temperature=1.0, machine=section)
    trainer.step([TrainingRow(PROMPT, READING.ids, "repair")], SupervisedLoss())
    trainer.save(tmp_path, tmp_path / "model")
    assert size.checkpoint(dtype) == bytes_of(load_file(tmp_path / "model" / "model.safetensors").values())
    beside = load_file(tmp_path / OPTIMIZER_STATE) if (tmp_path / OPTIMIZER_STATE).exists() else {}
    assert masters(size, section, dtype) == bytes_of(w for name, w in beside.items() if name.endswith("/master"))
    moments = [value for name, value in beside.items() if "/exp_avg" in name]
    if trained == "text":  # the vision tower has no state where no row had an image, and that of adapters ends
        assert 8 * trained_elements(size, section) == bytes_of(moments)


def test_the_published_sizes_have_the_published_numbers_of_weights():
    """Of the model cards of Qwen2.5-VL-3B-, 7B- and 32B-Instruct."""
    found = {name: size_of(empty_model(config, trust_remote_code=False)).weights for name, config in PUBLISHED.items()}
    assert found == {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336}
