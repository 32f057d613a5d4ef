"""Checkpoints that would run code when they are loaded: refused before anything of them is read."""

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import dynamic_module_utils

from stages.errors import ModelError
from stages.model.loading import load_codec, load_model

LOADERS = (load_model, load_codec)
CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json")


class Payload:
    """Unpickled, it writes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.fixture
def checkpoint(tiny_vlm, tmp_path):
    tiny_vlm.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def mark(tmp_path):
    """A file that is there once foreign code ran."""
    return tmp_path / "ran"


@pytest.fixture(autouse=True)
def answers_yes(monkeypatch, tmp_path):
    """Somebody at the terminal who agrees to everything; and no code kept from an earlier load."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(sys, "path", [*sys.path])


def change(file, **values):
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | values))


def bring_code(checkpoint, mark, name="config.json"):
    """Code of its own for the class that this file configures, of a model that transformers does not know."""
    (checkpoint / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: pass\n")
    kinds = {"config.json": "AutoConfig", "tokenizer_config.json": "AutoTokenizer"}
    values = {"auto_map": {kinds.get(name, "AutoProcessor"): "own.Own"}}
    if name == "config.json":
        values |= {"model_type": "own", "architectures": ["Own"]}
    change(checkpoint / name, **values)


def bring_weights(checkpoint, mark, name):
    torch.save({"lm_head.weight": Payload(mark)}, checkpoint / name)


def refusals(checkpoint):
    """What each way to use it says; `load_codec` is the check before any compute."""
    messages = set()
    for use in LOADERS:
        with pytest.raises(ModelError) as error:
            use(checkpoint)
        messages.add(str(error.value))
    return messages


@pytest.mark.parametrize("name", [*CONFIGS, "preprocessor_config.json", "video_preprocessor_config.json"])
def test_code_of_its_own_is_refused_and_nobody_is_asked(checkpoint, mark, name):
    bring_code(checkpoint, mark, name)
    (message,) = refusals(checkpoint)
    assert message.startswith(f"{checkpoint}: {name} names code that comes with the checkpoint (own.Own); ")
    assert "set model.trust_remote_code=true" in message
    assert not mark.exists()
    assert sys.stdin.tell() == 0


def test_code_named_inside_is_refused_too(checkpoint, mark):
    bring_code(checkpoint, mark)
    change(
        checkpoint / "config.json", auto_map=None, text_config={"deep": [{"auto_map": {"AutoModel": "a/b--own.Own"}}]}
    )
    (message,) = refusals(checkpoint)
    assert "(a/b--own.Own)" in message


def test_code_that_the_recipe_trusts_runs(checkpoint, mark):
    bring_code(checkpoint, mark)
    with pytest.raises(ModelError, match="register_for_auto_class"):  # it was imported, and is no configuration
        load_codec(checkpoint, trust_remote_code=True)
    assert mark.exists()


@pytest.mark.parametrize(
    "names", [("pytorch_model.bin",), ("training_args.bin",), ("adapter_model.bin", "optimizer.bin")]
)
def test_pickles_alone_are_refused_unread(checkpoint, mark, names):
    (checkpoint / "model.safetensors").unlink()
    for name in names:
        bring_weights(checkpoint, mark, name)
    (message,) = refusals(checkpoint)
    assert message.startswith(
        f"{checkpoint}: no *.safetensors file, only {', '.join(names)}; other formats can run code"
    )
    assert not mark.exists()


def test_pickles_beside_safetensors_are_left_alone(checkpoint, mark, tiny_vlm):
    for name in ("pytorch_model.bin", "training_args.bin"):
        bring_weights(checkpoint, mark, name)
    loaded = load_model(checkpoint)
    assert torch.equal(loaded.model.lm_head.weight, tiny_vlm.model.lm_head.weight)
    assert not mark.exists()


@pytest.mark.parametrize("weights", ["bin", "safetensors"])
def test_adapters_beside_the_weights_are_refused(checkpoint, mark, weights):
    change(checkpoint / "adapter_config.json", peft_type="LORA", base_model_name_or_path="some-organisation/some-model")
    if weights == "bin":
        bring_weights(checkpoint, mark, "adapter_model.bin")
    else:
        save_file({"a": torch.zeros(1)}, checkpoint / "adapter_model.safetensors")
    (message,) = refusals(checkpoint)
    assert message.startswith(f"{checkpoint}: adapter_config.json stands beside the weights, adapters are not read; ")
    assert not mark.exists()


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("place", ["weights.bin", "../weights.safetensors", "/tmp/weights.safetensors"])
def test_an_index_names_safetensors_in_the_folder_alone(checkpoint, mark, place, alone):
    """Whole weights beside it or not."""
    bring_weights(checkpoint, mark, "weights.bin")
    names = load_file(checkpoint / "model.safetensors")
    if alone:
        shutil.move(checkpoint / "model.safetensors", checkpoint / "other.safetensors")
    change(checkpoint / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, place))
    (message,) = refusals(checkpoint)
    missing, named = f"{place} is missing, which model.safetensors.index.json names; ", f"names {place!r}; "
    assert (missing if alone else named) in message
    assert not mark.exists()


def test_shards_that_an_index_names_are_read(checkpoint, tiny_vlm):
    names = load_file(checkpoint / "model.safetensors")
    shutil.move(checkpoint / "model.safetensors", checkpoint / "part.safetensors")
    change(
        checkpoint / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, "part.safetensors")
    )
    assert torch.equal(load_model(checkpoint).model.lm_head.weight, tiny_vlm.model.lm_head.weight)


def test_the_pickles_of_these_tests_run_when_they_are_read(checkpoint, mark):
    bring_weights(checkpoint, mark, "pytorch_model.bin")
    torch.load(checkpoint / "pytorch_model.bin", weights_only=False)
    assert mark.exists()


def test_a_file_that_is_not_json_is_named(checkpoint):
    (checkpoint / "processor_config.json").write_text("[" * 100_000)
    (message,) = refusals(checkpoint)
    assert message.startswith(f"{checkpoint / 'processor_config.json'}: not JSON (")
