"""Checkpoints that would run code when they are loaded: refused before anything of them is read."""

import io
import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    dynamic_module_utils,
)

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


@pytest.fixture
def hub_asked(monkeypatch):
    """Whom the process wants to speak to; nobody answers."""
    asked = []

    def getaddrinfo(host, *_args, **_kwargs):
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


KERNELS = {
    "plain": {"attn_implementation": "kernels-community/flash-attn"},
    "private": {"_attn_implementation": "evil/repo"},
    "by part": {"_attn_implementation": {"": "sdpa", "text_config": "evil/repo"}},
    "experts": {"_experts_implementation": "evil/repo"},
    "in a part": {"vision_config": {"attn_implementation": "evil/repo:function"}},
}


@pytest.mark.parametrize("name", KERNELS)
def test_attention_from_the_hub_is_refused(checkpoint, hub_asked, name):
    config = json.loads((checkpoint / "config.json").read_text())
    values = {key: config[key] | value if key in config else value for key, value in KERNELS[name].items()}
    change(checkpoint / "config.json", **values)
    (message,) = refusals(checkpoint)
    assert message.startswith(f"{checkpoint}: config.json names code on the hub (")
    assert "evil/repo" in message or "kernels-community/flash-attn" in message
    assert message.endswith("; remove it, or read that code and set model.trust_remote_code=true")
    assert not hub_asked


def test_attention_from_the_hub_can_be_trusted(checkpoint):
    """It is asked for then, by a package that is not there."""
    change(checkpoint / "config.json", _attn_implementation="evil/repo")
    with pytest.raises(ModelError, match=r"makes no model of its weights \(.*kernels"):
        load_codec(checkpoint, trust_remote_code=True)


def test_attention_of_transformers_own_can_be_named(checkpoint):
    change(checkpoint / "config.json", attn_implementation="eager")
    assert load_model(checkpoint).model.config._attn_implementation == "eager"


AUDIO = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "evil/dac"}


@pytest.mark.parametrize(
    ("name", "content"), [("processor_config.json", {"audio_tokenizer": AUDIO}), ("audio_tokenizer_config.json", AUDIO)]
)
def test_another_checkpoint_for_audio_is_refused(checkpoint, hub_asked, name, content):
    change(checkpoint / name, **content)
    (message,) = refusals(checkpoint)
    told = f"{checkpoint}: {name} names an audio tokenizer, another checkpoint; audio is not read, take it out"
    assert message == told
    assert not hub_asked


@pytest.mark.parametrize("name", ["other.safetensors", "adapter_model.bin", "../model.safetensors"])
def test_a_configuration_cannot_name_the_weights(checkpoint, mark, name):
    bring_weights(checkpoint, mark, "adapter_model.bin")
    change(checkpoint / "config.json", transformers_weights=name)
    (message,) = refusals(checkpoint)
    told = f"config.json names {name!r} as its weights; call that model.safetensors and remove the entry"
    assert message == f"{checkpoint}: {told}"
    assert not mark.exists()


def test_transformers_is_told_to_look_nowhere_but_in_a_folder(checkpoint, monkeypatch):
    found = []

    def recording(own):
        def from_pretrained(_cls, path, *more, **options):
            if path == checkpoint:
                found.append((own.__self__.__name__, options["local_files_only"]))
            return own(path, *more, **options)

        return classmethod(from_pretrained)

    loaders = (AutoConfig, AutoProcessor, AutoModelForImageTextToText, GenerationConfig)
    for loader in loaders:
        monkeypatch.setattr(loader, "from_pretrained", recording(loader.from_pretrained))
    load_model(checkpoint)
    assert set(found) == {(loader.__name__, True) for loader in loaders}


@pytest.fixture
def on_the_hub(checkpoint, tmp_path, monkeypatch):
    """Its files as downloaded under the name org/model, with no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache" / "models--org--model"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    shutil.copytree(checkpoint, folder / "snapshots" / commit)
    return folder / "snapshots" / commit


def test_a_model_of_the_hub_is_loaded_from_its_cache(on_the_hub, tiny_vlm):
    assert on_the_hub.is_dir()
    assert torch.equal(load_model("org/model").model.lm_head.weight, tiny_vlm.model.lm_head.weight)


def test_pickles_of_the_hub_are_not_read(on_the_hub):
    """A plain state, which transformers would read where it may."""
    torch.save(load_file(on_the_hub / "model.safetensors"), on_the_hub / "pytorch_model.bin")
    (on_the_hub / "model.safetensors").unlink()
    with pytest.raises(
        ModelError, match=r"^org/model: no safetensors to be had \(.*\); take a checkpoint that has them"
    ):
        load_model("org/model")


def test_weights_of_the_hub_are_compared_once_they_are_loaded(on_the_hub):
    weights = load_file(on_the_hub / "model.safetensors")
    lacking = {name: weight for name, weight in weights.items() if "layers.1." not in name}
    save_file(lacking, on_the_hub / "model.safetensors", {"format": "pt"})
    load_codec("org/model")
    with pytest.raises(ModelError, match=r"^org/model: its weights have no tensor \S+layers\.1\.\S+ and 11 others"):
        load_model("org/model")
    narrow = {name: weight[:-1].clone() if "up_proj" in name else weight for name, weight in weights.items()}
    save_file(narrow, on_the_hub / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"^org/model: tensor \S+up_proj\.\S+ and \d others is \["):
        load_model("org/model")


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
