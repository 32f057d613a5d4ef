"""What is not trained rests in bfloat16 and computes as float32 weights do under autocast; so do saved weights."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from stages.errors import ModelError
from stages.model.batches import encode_prompt
from stages.model.layout import Reading
from stages.model.loading import load_model
from stages.model.logprobs import LogprobReader
from stages.model.prompts import policy_prompt
from stages.sections import LoraSection, OptimizerSection, TrainerSection
from stages.training.losses import SupervisedLoss
from stages.training.trainer import ADAPTERS, OPTIMIZER_STATE, Trainer, TrainingRow

RANK, ALPHA = 4, 8
ADAPTED = {"lora": LoraSection(rank=RANK, alpha=ALPHA)}
# Not of linear layers or convolutions, by the names of the two architectures.
ADDED = ("norm", "ln_q", "embed_tokens", "cls_token", "position_embeddings", "lambda", "layer_norm")
VISION = ("model.visual.", "model.vision_tower.", "model.multi_modal_projector.")


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def checkpoint(request, tmp_path_factory):
    """Of weights that bfloat16 cannot hold, biases and norms too."""
    folder = tmp_path_factory.mktemp(request.param)
    request.getfixturevalue(request.param).save(folder)
    torch.manual_seed(1)
    weights = {name: w + 0.01 * torch.randn_like(w) for name, w in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def weights_of(folder):
    """In float32, by the names of the model."""
    return {name: weight.detach() for name, weight in load_model(folder).model.named_parameters()}


def opened(folder, trained):
    """A checkpoint, or a trainer's output."""
    step = (folder / "model").is_dir()
    return load_model(
        folder / "model" if step else folder,
        dtype="bfloat16",
        trained=trained,
        masters=folder / OPTIMIZER_STATE if step else None,
    )


def masters_in(folder):
    """Float32 weights in a trainer's output, by the names of the model."""
    found = load_file(folder / OPTIMIZER_STATE)
    return {name.removesuffix("/master"): weight for name, weight in found.items() if name.endswith("/master")}


def is_added(name):
    """Whether a weight enters sums, in float32."""
    return any(part in name for part in ADDED)


@pytest.fixture(scope="module")
def rows(checkpoint, problems, recipe):
    """Two responses to each of two problems."""
    codec = load_model(checkpoint)
    prompts = [encode_prompt(codec, policy_prompt(codec.processor, recipe.prompt, problem)) for problem in problems[:2]]
    return [TrainingRow(prompt, list(range(10 + k, 22)), "repair") for prompt in prompts for k in range(2)]


def trainer(vlm, learning_rate=1e-2, **machine):
    section = OptimizerSection(learning_rate=learning_rate, weight_decay=0.1)
    return Trainer(vlm, section, temperature=0.7, machine=TrainerSection(tokens_per_micro_batch=400, **machine))


def read(reader, rows):
    return reader.read([Reading(row.prompt, row.ids) for row in rows], temperature=0.7).logprobs_BT.detach()


def bytes_by_type(model):
    found = {torch.float32: 0, torch.bfloat16: 0}
    for weight in model.parameters():
        found[weight.dtype] += weight.nbytes
    return found


@pytest.mark.parametrize(("trained", "machine"), [("none", ADAPTED), ("text", {"freeze_vision": True})])
def test_trained_weights_and_what_enters_sums_take_4_bytes_the_rest_2(checkpoint, trained, machine):
    weights = weights_of(checkpoint)
    kept = {n for n in weights if is_added(n)}
    kept |= {n for n in weights if trained == "text" and not n.startswith(VISION)}
    elements = {name: weight.numel() for name, weight in weights.items()}
    vlm = opened(checkpoint, trained)
    rounded = sum(elements[name] for name in elements.keys() - kept)
    assert rounded > 0
    whole = sum(elements.values())
    assert bytes_by_type(vlm.model) == {torch.bfloat16: 2 * rounded, torch.float32: 4 * (whole - rounded)}

    own = trainer(vlm, **machine)
    adapters = sum(p.numel() for name, p in vlm.model.named_parameters() if ".lora_" in name)
    assert (adapters > 0) == (trained == "none")
    assert bytes_by_type(vlm.model) == {torch.bfloat16: 2 * rounded, torch.float32: 4 * (whole - rounded + adapters)}
    assert {p.dtype for group in own.optimizer.param_groups for p in group["params"]} == {torch.float32}


@pytest.mark.parametrize("trained", ["text", "none"])
def test_weights_at_rest_compute_as_float32_ones_do(checkpoint, rows, trained):
    masters, own = (LogprobReader(opened(checkpoint, which)) for which in ("all", trained))
    assert own.packed == masters.packed
    with torch.no_grad():
        assert torch.equal(read(own, rows), read(masters, rows))


@pytest.mark.parametrize(("trained", "machine"), [("none", ADAPTED), ("text", {"freeze_vision": True})])
def test_a_step_beside_weights_at_rest_has_the_gradients_of_one_beside_float32_ones(checkpoint, rows, trained, machine):
    gradients = []
    for which in ("all", trained):
        vlm = opened(checkpoint, which)
        own = trainer(vlm, **machine)
        torch.manual_seed(2)
        for name, weight in vlm.model.named_parameters():
            if ".lora_" in name:  # rounded when they are drawn beside rounded weights
                weight.data.copy_(0.1 * torch.randn_like(weight))
        own.step(rows, SupervisedLoss())
        gradients.append({name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient.norm() > 0, name
        assert torch.equal(gradients[1][name], gradient), name


class Casts(TorchDispatchMode):
    """Counts the bfloat16 copies of float32 weights that are alive."""

    def __init__(self, model):
        super().__init__()
        self.shapes = {weight.shape for weight in model.parameters() if weight.ndim == 2}
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16 and out.shape in self.shapes:
            self.made.append(weakref.ref(out))
        return out

    def alive(self):
        return sum(reference() is not None for reference in self.made)


def test_no_pass_keeps_the_casts_of_its_weights(checkpoint, rows):
    vlm = opened(checkpoint, "all")
    reader, seen = LogprobReader(vlm), []
    reader.packed = False  # no dispatch mode goes with the mask of packed rows
    counted = Casts(vlm.model)
    layers = vlm.model.get_decoder().layers
    layers[-1].register_forward_hook(lambda *_: seen.append(counted.alive()))
    with torch.no_grad(), counted:
        read(reader, rows)
    assert len(counted.made) >= 7 * len(layers)
    assert max(seen) <= 1


def test_adapters_are_added_to_the_weights_of_the_files(checkpoint, rows, tmp_path):
    own = trainer(opened(checkpoint, "none"), learning_rate=1e-4, **ADAPTED)
    own.step(rows, SupervisedLoss())
    own.save(tmp_path, tmp_path / "model")
    before, saved, after = weights_of(checkpoint), weights_of(tmp_path / "model"), masters_in(tmp_path)
    adapters = load_file(tmp_path / ADAPTERS / "adapter_model.safetensors")
    assert saved.keys() == before.keys()
    moved, lost = 0, 0
    for name, weight in before.items():
        layer = name.removesuffix(".weight")
        down, up = (
            next((v for key, v in adapters.items() if f".{layer}.lora_{side}.weight" in key), None) for side in "AB"
        )
        if up is None:
            assert name not in after
            assert torch.equal(saved[name], weight if is_added(name) else weight.bfloat16().float()), name
            continue
        assert torch.equal(after[name], weight + ALPHA / RANK * (up @ down)), name
        assert torch.equal(saved[name], after[name].bfloat16().float()), name
        moved += (after[name] != weight).sum()
        lost += (after[name] != weight).logical_and(after[name].bfloat16() == weight.bfloat16()).sum()
    # Most changes are too small for bfloat16: later rounds add to them.
    assert lost > 0.5 * moved > 0


def test_a_second_rounds_adapters_are_added_to_what_the_first_ones_came_to(checkpoint, rows, tmp_path):
    first = trainer(opened(checkpoint, "none"), learning_rate=1e-4, **ADAPTED)
    first.step(rows, SupervisedLoss())
    first.save(tmp_path / "first", tmp_path / "first" / "model")
    second = trainer(opened(tmp_path / "first", "none"), learning_rate=1e-30, **ADAPTED)
    second.step(rows, SupervisedLoss())
    second.save(tmp_path / "second", tmp_path / "second" / "model")
    before, after = masters_in(tmp_path / "first"), masters_in(tmp_path / "second")
    assert after.keys() == before.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-12)


def test_a_frozen_vision_tower_is_saved_as_it_came_but_for_the_rounding_of_its_uses(checkpoint, rows, tmp_path):
    own = trainer(opened(checkpoint, "text"), freeze_vision=True)
    own.step(rows, SupervisedLoss())
    own.save(tmp_path, tmp_path / "model")
    before, after = weights_of(checkpoint), weights_of(tmp_path / "model")
    came = {n: weight if is_added(n) else weight.bfloat16().float() for n, weight in before.items()}
    assert {n for n in before if torch.equal(came[n], after[n])} == {n for n in before if n.startswith(VISION)}
    assert not any(name.startswith(VISION) for name in masters_in(tmp_path))


@pytest.mark.parametrize(("trained", "machine"), [("all", {}), ("text", {"freeze_vision": True}), ("none", ADAPTED)])
def test_every_reader_finds_the_weights_that_the_trainer_had(checkpoint, rows, trained, machine, tmp_path):
    """The next trainer in float32, scorer and reference as autocast rounds them, the sampler in bfloat16."""
    own = trainer(opened(checkpoint, trained), **machine)
    own.step(rows, SupervisedLoss())
    own.save(tmp_path, tmp_path / "model")
    again, scorer = (opened(tmp_path, which) for which in (trained, "none"))
    if trained != "none":
        for name, weight in own.vlm.model.named_parameters():
            assert torch.equal(dict(again.model.named_parameters())[name], weight), name
    with torch.no_grad():
        trained_logprobs = read(LogprobReader(again), rows)
        assert torch.equal(read(LogprobReader(scorer), rows), trained_logprobs)
    sampler = dict(opened(tmp_path, None).model.named_parameters())
    for name, weight in again.model.named_parameters():
        assert torch.equal(sampler[name], weight.bfloat16()), name


@pytest.mark.parametrize(("trained", "machine"), [("none", ADAPTED), ("text", {"freeze_vision": True})])
def test_what_is_saved_loads_in_bfloat16(checkpoint, trained, machine, tmp_path):
    """As anyone else loads it. Files hold float32 of what enters sums, so that a scorer finds it as it was trained."""
    trainer(opened(checkpoint, trained), **machine).save_weights(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["dtype"] == config["text_config"]["dtype"] == "bfloat16"
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert types == {name: "F32" if is_added(name) else "BF16" for name in types}


def test_files_that_are_gone_are_named(checkpoint, tmp_path):
    own = trainer(opened(checkpoint, "none"), **ADAPTED)
    own.vlm.model.name_or_path = str(tmp_path / "gone")
    with pytest.raises(ModelError, match=r"gone: no such model folder"):
        own.save_weights(tmp_path / "model")


def test_an_interrupted_run_goes_on_to_the_byte(checkpoint, rows, tmp_path):
    def new():
        return trainer(opened(checkpoint, "none"), **ADAPTED)

    whole, first, second = new(), new(), new()
    whole.step(rows, SupervisedLoss())
    first.step(rows, SupervisedLoss())
    (tmp_path / "state").mkdir()
    first.save_state(tmp_path / "state")
    second.load_state(tmp_path / "state")
    for one, folder in ((whole, "whole"), (second, "second")):
        one.step([replace(row, ids=row.ids[1:]) for row in rows], SupervisedLoss())
        one.save(tmp_path / folder, tmp_path / folder / "model")
    for file in ("model/model.safetensors", OPTIMIZER_STATE, f"{ADAPTERS}/adapter_model.safetensors"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
