"""Which weights a step trains, and the checkpoint that they become."""

import json
import sys
from collections import Counter
from dataclasses import replace

import bitsandbytes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.strips.tiny_model import plain_logprobs
from stages.errors import RecipeError
from stages.model.batches import encode_prompt, response_batch
from stages.model.layout import Reading
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.sections import LoraSection, ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.losses import PolicyObjective, SupervisedLoss
from stages.training.quantized import check_quantized
from stages.training.trainer import ADAPTERS, OPTIMIZER_STATE, Trainer, TrainingRow

TEMPERATURE = 0.7
RANK, ALPHA = 4, 8
ADAPTED = {"lora": LoraSection(rank=RANK, alpha=ALPHA)}
# What sees the images, by the names that the two architectures give it.
VISION = ("model.visual.", "model.vision_tower.", "model.multi_modal_projector.")
KL = PolicyObjective(ObjectiveSection(algorithm="dapo", kl_coef=0.5), RolloutSection(temperature=TEMPERATURE))


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def vlm(request):
    return request.getfixturevalue(request.param)


def training_rows(vlm, problems, recipe, seed):
    """Groups of two and three responses with common beginnings, with one image and with two."""
    rng = np.random.default_rng(seed)
    allowed = np.setdiff1d(np.arange(len(vlm.tokenizer)), vlm.banned_ids)
    rows = []
    for group, images in enumerate((problems[0].images, (*problems[1].images, *problems[2].images))):
        text = policy_prompt(vlm.processor, recipe.prompt, replace(problems[group], images=images))
        prompt = encode_prompt(vlm, text)
        beginning = rng.choice(allowed, 3 + seed).tolist()
        for member in range(2 + group):
            ids = beginning + rng.choice(allowed, 4 + member).tolist()
            old_T = rng.normal(-6, 0.1, len(ids)).tolist()
            rows.append(TrainingRow(prompt, ids, "error", (-1) ** member * 0.7, None, old_T))
    return rows


@pytest.fixture(scope="module")
def rows(vlm, problems, recipe):
    return training_rows(vlm, problems, recipe, 0)


def trainer(vlm, learning_rate=1e-2, weight_decay=0.1, seed=0, **machine):
    section = OptimizerSection(learning_rate=learning_rate, weight_decay=weight_decay, max_grad_norm=1e9)
    return Trainer(vlm, section, temperature=TEMPERATURE, machine=TrainerSection(**machine), seed=seed)


def gradients(vlm):
    return {name: p.grad.clone() for name, p in vlm.model.named_parameters() if p.grad is not None}


def step_gradients(vlm, rows, **machine):
    """Every gradient of a supervised step that hardly moves the weights."""
    trainer(vlm, learning_rate=1e-12, weight_decay=0, **machine).step(rows, SupervisedLoss())
    return gradients(vlm)


def logprobs(vlm, rows):
    """Those of each response in a row alone, from the model's own logits."""
    with torch.no_grad():
        return [
            plain_logprobs(vlm, response_batch(vlm, [row.prompt], [row.ids]), temperature=TEMPERATURE)[0]
            for row in rows
        ]


def furthest(some, others):
    return max((a - b).abs().max().item() for a, b in zip(some, others, strict=True))


def assert_same(found, expected, tolerance):
    """Every gradient, to a share of its norm."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm(), name


def assert_same_keys(folder, other):
    """Checkpoints with the same tensors by name, shape and type."""
    found, expected = (
        {name: (value.shape, value.dtype) for name, value in load_file(path / "model.safetensors").items()}
        for path in (folder, other)
    )
    assert found == expected


def text_layers(vlm):
    """Names of the text model's linear layers, the head left out, with their weights."""
    return {
        name: module.weight
        for name, module in vlm.model.named_modules()
        if isinstance(module, torch.nn.Linear) and not name.startswith((*VISION, "lm_head"))
    }


def scaled(weights, name):
    """B A alpha / rank of a layer, from the tensors of a file."""
    a, b = (next(value for key, value in weights.items() if f".{name}.lora_{side}." in key) for side in "AB")
    assert (len(a), b.shape[1]) == (RANK, RANK)
    return b @ a * (ALPHA / RANK)


def test_every_linear_layer_of_the_text_has_an_adapter_and_nothing_else_is_trained(vlm, copy_of):
    own = copy_of(vlm)
    optimizer = trainer(own, **ADAPTED).optimizer
    trained = {name: p for name, p in own.model.named_parameters() if p.requires_grad}
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained.values()}
    assert trained.keys() == {f"{name}.lora_{side}.default.weight" for name in text_layers(vlm) for side in "AB"}
    # Query, key, value, output, gate, up, down.
    assert len(text_layers(vlm)) == 7 * vlm.model.config.get_text_config().num_hidden_layers


def test_only_adapters_move(vlm, copy_of, rows):
    own = copy_of(vlm)
    adapted = trainer(own, **ADAPTED)
    before = {name: p.clone() for name, p in own.model.named_parameters()}
    for _ in range(2):
        adapted.step(rows, SupervisedLoss())
    plain = dict(vlm.model.named_parameters())
    for name, value in own.model.named_parameters():
        if "lora_" in name:
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, plain.pop(name.replace(".base_layer", ""))), name
    assert not plain


def test_adapters_start_at_the_model_with_the_gradients_of_its_weights(vlm, copy_of, rows):
    """At B = 0 the gradient of B is that of the layer's whole weight times A, scaled."""
    whole = step_gradients(copy_of(vlm), rows)
    own = copy_of(vlm)
    found = step_gradients(own, rows, **ADAPTED)
    for name in text_layers(vlm):
        down = own.model.get_parameter(f"{name}.lora_A.default.weight").detach()
        expected = whole[f"{name}.weight"] @ down.T * (ALPHA / RANK)
        difference = found[f"{name}.lora_B.default.weight"] - expected
        assert difference.norm() < 1e-4 * expected.norm()
        assert not found[f"{name}.lora_A.default.weight"].any()


def test_a_step_of_adapters_is_saved_as_a_plain_checkpoint_and_as_adapters(vlm, rows, tmp_path):
    from peft import PeftModel

    vlm.save(tmp_path / "base")
    own = load_model(tmp_path / "base")
    adapted = trainer(own, **ADAPTED)
    for _ in range(2):
        adapted.step(rows, SupervisedLoss())
    adapted.save(tmp_path, tmp_path / "model")
    live = logprobs(own, rows)
    assert furthest(live, logprobs(vlm, rows)) > 0.1
    # The live model is the adapted one in training's own numbers too.
    readings = [Reading(row.prompt, row.ids) for row in rows]
    with torch.no_grad():
        read_BT = adapted.reader.read(readings, temperature=TEMPERATURE).logprobs_BT
    assert furthest([read_T[: len(row.ids)] for read_T, row in zip(read_BT, rows, strict=True)], live) < 1e-5

    assert furthest(logprobs(load_model(tmp_path / "model"), rows), live) < 1e-5
    assert_same_keys(tmp_path / "model", tmp_path / "base")
    adapters = load_file(tmp_path / ADAPTERS / "adapter_model.safetensors")
    assert len(adapters) == 2 * len(text_layers(vlm))
    saved = dict(load_model(tmp_path / "model").model.named_parameters())
    for name, value in vlm.model.named_parameters():
        layer = name.removesuffix(".weight")
        if layer in text_layers(vlm):
            torch.testing.assert_close(saved[name], value + scaled(adapters, layer), atol=1e-6, rtol=0)
            assert not torch.equal(saved[name], value), name
        else:
            assert torch.equal(saved[name], value), name
    assert not (tmp_path / OPTIMIZER_STATE).exists()

    loaded = load_model(tmp_path / "base")
    peft_model = PeftModel.from_pretrained(loaded.model, tmp_path / ADAPTERS)
    assert furthest(logprobs(loaded, rows), live) < 1e-5
    with peft_model.disable_adapter():
        assert furthest(logprobs(loaded, rows), logprobs(vlm, rows)) < 1e-6


def test_saved_adapters_name_their_rank_and_scale(tiny_vlm, copy_of, tmp_path):
    trainer(copy_of(tiny_vlm), **ADAPTED).save(tmp_path, tmp_path / "model")
    config = json.loads((tmp_path / ADAPTERS / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (RANK, ALPHA, "LORA")


def test_adapters_start_anew_whatever_lies_beside_the_checkpoint(tiny_vlm, copy_of, problems, recipe, tmp_path):
    rows = training_rows(tiny_vlm, problems, recipe, 0)
    whole = trainer(copy_of(tiny_vlm))
    whole.step(rows, SupervisedLoss())
    whole.save(tmp_path, tmp_path / "model")
    resumed = Trainer(
        load_model(tmp_path / "model"),
        whole.section,
        temperature=TEMPERATURE,
        machine=TrainerSection(**ADAPTED),
        resume_from=tmp_path,
    )
    assert resumed.steps_done == 0
    assert not resumed.optimizer.state


def test_kl_is_to_the_model_without_its_adapters(vlm, copy_of, rows):
    own = copy_of(vlm)
    adapted = trainer(own, **ADAPTED)
    assert adapted.step(rows, KL)["kl_ref"] == 0
    own.model.zero_grad()
    live = [
        plain_logprobs(own, response_batch(own, [row.prompt], [row.ids]), temperature=TEMPERATURE)[0] for row in rows
    ]
    differences_N = torch.cat(logprobs(vlm, rows)) - torch.cat(live)
    # A token's estimate ends at 10 nats, as the peers have it.
    distance = (differences_N.exp() - 1 - differences_N).clamp(max=10).mean()
    assert distance > 1e-3
    (0.5 * distance).backward()
    expected = gradients(own)
    # Without advantages a step's loss is the KL alone.
    metrics = adapted.step([replace(row, advantage=0.0) for row in rows], KL)
    assert metrics["kl_ref"] == pytest.approx(distance.item(), rel=1e-4)
    assert_same(gradients(own), expected, 1e-4)


def test_a_kl_needs_a_reference_or_adapters(tiny_vlm, copy_of, problems, recipe):
    with pytest.raises(ValueError, match="give the trainer a reference"):
        trainer(copy_of(tiny_vlm)).step(training_rows(tiny_vlm, problems, recipe, 0), KL)


def test_a_seed_draws_the_adapters_and_nothing_else(tiny_vlm, copy_of):
    def drawn(seed, other):
        torch.manual_seed(other)
        before = torch.get_rng_state()
        own = copy_of(tiny_vlm)
        trainer(own, seed=seed, **ADAPTED)
        assert torch.equal(torch.get_rng_state(), before)
        return {name: p for name, p in own.model.named_parameters() if "lora_A" in name}

    first, again, another = drawn(3, other=0), drawn(3, other=1), drawn(4, other=0)
    assert len(first) == len(text_layers(tiny_vlm))
    for name, value in first.items():
        assert torch.equal(value, again[name])
        assert not torch.equal(value, another[name])
    # Layers of the same shape have draws of their own.
    assert len({tuple(value.flatten()[:4].tolist()) for value in first.values()}) == len(first)


def test_a_frozen_vision_tower_stays_while_the_text_moves_as_it_would(vlm, copy_of, rows):
    whole, own = copy_of(vlm), copy_of(vlm)
    for model, frozen in ((whole, False), (own, True)):
        trainer(model, freeze_vision=frozen).step(rows, SupervisedLoss())
    before = dict(vlm.model.named_parameters())
    sees = {name for name in before if name.startswith(VISION)}
    assert sees
    assert sees < before.keys()
    for name, value in own.model.named_parameters():
        if name in sees:
            assert torch.equal(value, before[name]), name
            assert value.grad is None
        else:
            assert not torch.equal(value, before[name]), name
    moved = {name for name, value in whole.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == before.keys()
    text = {name: gradient for name, gradient in gradients(whole).items() if name not in sees}
    assert_same(gradients(own), text, 1e-6)


def test_a_model_with_a_frozen_vision_tower_is_saved_whole(vlm, copy_of, rows, tmp_path):
    vlm.save(tmp_path / "base")
    own = copy_of(vlm)
    frozen = trainer(own, freeze_vision=True)
    frozen.step(rows, SupervisedLoss())
    frozen.save(tmp_path, tmp_path / "model")
    assert_same_keys(tmp_path / "model", tmp_path / "base")
    assert furthest(logprobs(load_model(tmp_path / "model"), rows), logprobs(own, rows)) < 1e-6


@pytest.mark.parametrize("options", [{}, ADAPTED, {"freeze_vision": True}], ids=["whole", "adapters", "frozen vision"])
def test_gradient_checkpointing_gives_the_same_gradients(vlm, copy_of, rows, options):
    found, calls = [], []
    for checkpointing in (False, True):
        own = copy_of(vlm)
        adapted = trainer(own, learning_rate=1e-12, weight_decay=0, gradient_checkpointing=checkpointing, **options)
        runs = Counter()
        for index, layer in enumerate(own.model.get_decoder().layers):
            layer.mlp.register_forward_pre_hook(lambda *_, runs=runs, index=index: runs.update([index]))
        adapted.step(rows, SupervisedLoss())
        found.append({name: gradient for name, gradient in gradients(own).items() if gradient.any()})
        calls.append(list(runs.values()))
    assert_same(found[1], found[0], 1e-6)
    # Every layer runs again in the backward pass.
    layers = len(own.model.get_decoder().layers)
    assert calls == [[1] * layers, [2] * layers]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_layers_give_the_same_gradients_for_one_tree_after_another(tiny_vlm, copy_of, problems, recipe):
    steps = [training_rows(tiny_vlm, problems, recipe, seed) for seed in (0, 1, 4)]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = copy_of(tiny_vlm)
    own = trainer(compiled, learning_rate=1e-12, weight_decay=0, compile=True)
    graphs = []
    for step in steps:
        own.step(step, SupervisedLoss())
        assert_same(gradients(compiled), step_gradients(copy_of(tiny_vlm), step), 1e-4)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # Other trees need no other code: a recompilation each would soon reach the limit.
    assert graphs[0] == graphs[1] == graphs[2] > 0


IN_FOUR_BITS = {"lora": LoraSection(rank=RANK, alpha=ALPHA, bits=4)}
BELOW = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105004)
ABOVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF4 = torch.tensor([*BELOW, 0.0, *ABOVE])
"""QLoRA's appendix E."""


def dequantized(vlm):
    """What the text model's linear layers hold, made whole again."""
    layers = {name: part for name, part in vlm.model.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)}
    return {
        name.removesuffix(".base_layer"): bitsandbytes.functional.dequantize_4bit(part.weight, part.weight.quant_state)
        for name, part in layers.items()
        if hasattr(part.weight, "quant_state") and ".lora_" not in name
    }


def test_layers_in_four_bits_hold_the_nearest_of_sixteen_values(vlm, copy_of):
    """Of each 64 weights the largest is the scale, which is itself kept in eight bits."""
    own = copy_of(vlm)
    trainer(own, **IN_FOUR_BITS)
    found, originals = dequantized(own), text_layers(vlm)
    assert found.keys() == {name for name, weight in originals.items() if weight.shape[1] % 64 == 0}
    assert found
    for name in found:
        weight = originals[name]
        blocks_NB = weight.detach().flatten().unflatten(0, (-1, 64))
        scale_N1 = blocks_NB.abs().amax(1, keepdim=True)
        nearest_NB = NF4[(blocks_NB / scale_N1)[..., None].sub(NF4).abs().argmin(-1)] * scale_N1
        off_NB = (found[name].view_as(blocks_NB) - nearest_NB).abs() / scale_N1
        # Eight bits of a scale, and what lies in the middle of two values may fall to either.
        assert off_NB.median() < 0.01, name
        assert (off_NB < 0.02).float().mean() > 0.99, name


def test_they_compute_as_the_weights_that_they_stand_for(vlm, copy_of, rows):
    """Adapters' gradients are those over whole layers of the same weights."""
    own, whole = copy_of(vlm), copy_of(vlm)
    found = step_gradients(own, rows, **IN_FOUR_BITS)
    with torch.no_grad():
        for name, weight in dequantized(own).items():
            whole.model.get_submodule(name).weight.copy_(weight)
    expected = step_gradients(whole, rows, **ADAPTED)
    down = {name for name in expected if ".lora_A." in name}  # no gradient at the start
    assert found.keys() == expected.keys()
    assert all(found[name].norm() == 0 for name in down)
    assert_same(*({n: g for n, g in side.items() if n not in down} for side in (found, expected)), 1e-4)


def test_a_step_over_them_is_saved_on_the_weights_that_they_came_from(vlm, rows, tmp_path):
    vlm.save(tmp_path / "start")
    own = load_model(tmp_path / "start", trained="none", quantized=True)
    adapted = trainer(own, **IN_FOUR_BITS)
    for _ in range(2):
        adapted.step(rows, SupervisedLoss())
    adapted.save(tmp_path / "out", tmp_path / "out/model")

    assert_same_keys(tmp_path / "out/model", tmp_path / "start")
    adapters = load_file(tmp_path / "out" / ADAPTERS / "adapter_model.safetensors")
    after = dict(load_model(tmp_path / "out/model").model.named_parameters())
    for name, weight in vlm.model.named_parameters():
        layer = name.removesuffix(".weight")
        is_adapted = layer in text_layers(vlm)
        added = scaled(adapters, layer) if is_adapted else 0
        torch.testing.assert_close(after[name], weight + added, atol=1e-6, rtol=0)
        assert is_adapted != torch.equal(after[name], weight), name


def test_moments_in_eight_bits_are_refused_where_they_cannot_be_had(monkeypatch):
    section = TrainerSection(optimizer_bits=8)
    check_quantized(section)
    with monkeypatch.context() as patched:
        patched.setattr("stages.runtime.processes.count", lambda: 2)
        check_quantized(section)
        patched.setenv("ACCELERATE_USE_FSDP", "true")
        with pytest.raises(RecipeError, match=r"optimizer_bits is 8, which takes whole copies, .* ddp\.yaml"):
            check_quantized(section)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(RecipeError, match=r"^trainer\.optimizer_bits is 8; pip install '\.\[quantized\]'"):
        check_quantized(section)


def test_four_bits_are_refused_where_they_cannot_be_had(monkeypatch):
    section = TrainerSection(**IN_FOUR_BITS)
    check_quantized(section)
    with monkeypatch.context() as patched:
        patched.setattr("stages.runtime.processes.count", lambda: 2)
        check_quantized(TrainerSection(**ADAPTED))
        with pytest.raises(RecipeError, match="which takes one process; leave the launcher"):
            check_quantized(section)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    check_quantized(TrainerSection(**ADAPTED))
    with pytest.raises(RecipeError, match=r"pip install '\.\[quantized\]'"):
        check_quantized(section)
