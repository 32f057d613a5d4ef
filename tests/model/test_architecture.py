"""Weights against the configuration beside them: what lacks, or has another shape, is named before it is read."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.errors import ModelError
from stages.model.architecture import check_finite
from stages.model.loading import load_codec, load_model


@pytest.fixture(scope="module", params=["tiny_vlm", "tiny_internvl"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    request.getfixturevalue(request.param).save(folder)
    return folder


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def change_weights(folder, change):
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, part, **values):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(values)
    (folder / "config.json").write_text(json.dumps(config))


def without(*parts):
    return lambda weights: {k: v for k, v in weights.items() if not all(part in k for part in parts)}


def cut(*parts):
    return lambda weights: {k: v[:-1].clone() if all(p in k for p in parts) else v for k, v in weights.items()}


WEIGHTS = {
    "no norm": (without("layers.0.input_layernorm", "weight"), r"no tensor \S+layers\.0\.input_layernorm\.weight, wh"),
    "no layer": (
        without("layers.1."),
        r"no tensor \S+layers\.1\.input_layernorm\.\w+ and \d+ others, which its config",
    ),
    "one of its own": (lambda _: {"x": torch.zeros(1)}, r"no tensor lm_head\.weight and \d+ others"),
    "all prefixed": (lambda weights: {f"foo.{k}": v for k, v in weights.items()}, r"no tensor lm_head\.weight and \d+"),
    "cut": (cut("layers.0.mlp.gate_proj"), r"tensor \S+layers\.0\.mlp\.gate_proj\.weight is \[\d+, \d+\], its conf"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_not_all_there_are_refused(name, checkpoint):
    change, message = WEIGHTS[name]
    change_weights(checkpoint, change)
    with pytest.raises(ModelError, match=f"model: .*{message}.*; give the config.json that these weights were saved"):
        load_codec(checkpoint)


CONFIGS = {
    "vocabulary": ({"vocab_size": 100}, r"embed_tokens\.weight.* is \[\d+, \d+\], its config\.json wants \[100, "),
    "width": ({"hidden_size": 32}, r" and \d+ others is \[.*\], its config\.json wants \["),
    "layers": (
        {"num_hidden_layers": 9, "layer_types": None},
        r"no tensor \S+layers\.\d\.input_layernorm\.weight and \d+ others",
    ),
    "heads": ({"num_attention_heads": 3}, r"makes no model of its weights \(.*\)|its config\.json wants \["),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_other_weights_is_refused(name, checkpoint):
    values, message = CONFIGS[name]
    change_config(checkpoint, "text_config", **values)
    with pytest.raises(ModelError, match=message):
        load_codec(checkpoint)


def test_a_quantized_model_is_refused(checkpoint):
    change_config(checkpoint, None, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match=r"has a quantization_config; give the model before it was quantized"):
        load_codec(checkpoint)


def test_the_shards_of_an_index_are_compared_too(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    for number, names in enumerate((list(weights)[::2], list(weights)[1::2])):
        save_file({name: weights[name] for name in names}, checkpoint / f"{number}.safetensors", {"format": "pt"})
    index = {name: f"{number % 2}.safetensors" for number, name in enumerate(weights)}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    load_codec(checkpoint)
    change_config(checkpoint, "text_config", num_hidden_layers=4, layer_types=None)
    with pytest.raises(ModelError, match=r"no tensor \S+layers\.\d\.input_layernorm"):
        load_codec(checkpoint)


LAYOUTS = {
    "its modules' names": lambda model: model.state_dict(),
    "tied weights once": lambda model: without("lm_head")(model.state_dict()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_of_other_releases_are_known(layout, checkpoint):
    """transformers saves some models under older names than their modules have, and reads both."""
    model = load_model(checkpoint).model
    state = {name: weight.clone() for name, weight in LAYOUTS[layout](model).items()}
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = model.lm_head.weight.detach().clone()
    assert state.keys() != load_file(checkpoint / "model.safetensors").keys()
    save_file(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    loaded = load_model(checkpoint).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_are_numbers(value, checkpoint):
    def spoil(weights):
        (name,) = (name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
        weights[name][-1, -1] = value
        return weights

    change_weights(checkpoint, spoil)
    load_codec(checkpoint)
    with pytest.raises(
        ModelError, match=r"model: tensor \S+layers\.1\.mlp\.up_proj\.weight holds NaN or infinity; give"
    ):
        load_model(checkpoint)


def test_weights_that_lie_on_a_disk_are_left_there():
    """As accelerate's, where the GPUs cannot hold a model."""
    check_finite("model", torch.nn.Linear(2, 2, device="meta"))


def test_nothing_is_told_of_a_refused_model_but_its_error(checkpoint, caplog, capfd):
    """transformers would write a table of all that is missing."""
    change_weights(checkpoint, without("layers.1."))
    with pytest.raises(ModelError):
        load_codec(checkpoint)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
