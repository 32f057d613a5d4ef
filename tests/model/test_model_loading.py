"""Checkpoints: what is missing is named, and what is saved is what was loaded."""

import copy
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from stages.errors import ModelError
from stages.model.batches import encode_prompt, response_batch
from stages.model.encoding import find_encoding
from stages.model.loading import check_model_folder, load_codec, load_model, wrap_model
from stages.model.prompts import policy_prompt
from stages.model.torchvision_ops import declare_in_child_processes


@pytest.fixture(scope="module")
def checkpoint(tiny_vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_vlm.save(folder)
    return folder


def logits(vlm, problem, recipe):
    prompt = policy_prompt(vlm.processor, recipe.prompt, problem)
    batch = response_batch(vlm, [encode_prompt(vlm, prompt)], [[10, 11, 12]])
    with torch.no_grad():
        return vlm.model(**batch.inputs).logits


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json", "processor_config.json", "model.safetensors"])
def test_a_missing_part_is_named(checkpoint, tmp_path, part):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / part).unlink()
    with pytest.raises(ModelError, match=r"\*\.safetensors" if part == "model.safetensors" else part):
        load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 200, -4])
def test_weights_that_are_cut_off_are_named(keep, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:keep])
    with pytest.raises(
        ModelError, match=r"model\.safetensors: not a whole safetensors file \(.*\); fetch or copy .* again"
    ):
        check_model_folder(folder)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "processor_config.json"])
def test_a_configuration_that_is_not_json_is_named(name, checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(ModelError, match=rf"model/{name}: not JSON \(.*\); fetch or copy the model folder again"):
        check_model_folder(folder)


@pytest.fixture(scope="module")
def sharded(tiny_vlm, tmp_path_factory):
    """The checkpoint as transformers cuts a large one."""
    folder = tmp_path_factory.mktemp("sharded")
    tiny_vlm.save(folder)
    (folder / "model.safetensors").unlink()
    tiny_vlm.model.save_pretrained(folder, max_shard_size="50KB")
    return folder


def test_a_sharded_checkpoint_that_is_not_whole_is_refused(sharded, tmp_path):
    check_model_folder(sharded)
    index, first, *others = sorted(file.name for file in sharded.glob("model*"))[::-1]
    assert index == "model.safetensors.index.json"
    assert others
    for number, (spoil, message) in enumerate(
        {
            lambda folder: (folder / first).unlink(): rf"{first} is missing, which {index} names",
            lambda folder: shutil.copy(
                folder / others[0], folder / first
            ): f"{first}: no tensor .*, which {index} places",
            lambda folder: (folder / index).unlink(): f"neither model.safetensors nor {index}",
            lambda folder: (folder / index).write_text("{}"): f"{index}: no weight_map",
            lambda folder: (folder / first).write_bytes(
                b"version https://git-lfs"
            ): f"{first}: not a whole safetensors",
        }.items()
    ):
        folder = shutil.copytree(sharded, tmp_path / str(number))
        spoil(folder)
        with pytest.raises(ModelError, match=message):
            check_model_folder(folder)


def test_a_folder_that_is_not_there_is_named_and_a_hub_name_passes(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        check_model_folder(tmp_path / "absent")
    with pytest.raises(ModelError, match="no such model folder"):
        check_model_folder("data/digits/absent")
    check_model_folder("some-organisation/some-model")


def test_a_model_without_an_end_token_is_refused(tiny_vlm, copy_of):
    model, processor = copy_of(tiny_vlm).model, copy.deepcopy(tiny_vlm.processor)
    assert model.generation_config.eos_token_id is None
    assert wrap_model(copy.deepcopy(model), processor).end_ids == (processor.tokenizer.eos_token_id,)
    processor.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end token"):
        wrap_model(model, processor)


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ([], "names an end token"),
        ([2, -1], "its end token -1 is no id below"),
        ([2, True], "its end token True is no id below"),
        ([2, "3"], "its end token '3' is no id below"),
        (2.0, r"its end token 2\.0 is no id below"),
        (999999, "its end token 999999 is no id below"),
    ],
)
def test_end_tokens_are_ids_of_the_model(tiny_vlm, copy_of, named, told):
    model = copy_of(tiny_vlm).model
    model.generation_config.eos_token_id = named
    with pytest.raises(ModelError, match=told):
        wrap_model(model, tiny_vlm.processor)


@pytest.mark.parametrize("content", ["[1]", '{"eos_token_id": "x"}', '{"max_new_tokens": "many"}'])
def test_generation_settings_that_cannot_be_read_are_named(checkpoint, tmp_path, content):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"{folder}: .*(generation_config\.json|eos_token_id)"):
        load_codec(folder)


TEMPLATES = {
    "{{ 1/0 }}": r"cannot be rendered \(division by zero\)",
    "{% if %}": r"cannot be rendered \(Expected an expression, got 'end of statement block'\)",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": r"cannot be rendered \(access to attribute '__class__'",
    "": r"cannot be rendered \(.* this processor does not have a chat template",
    "user": "writes a question 0 times into the prompt",
    "{{ messages[0]['content'][-1]['text'] * 2 }}": "writes a question 2 times into the prompt",
    "{% for part in messages[0]['content'] %}{{ part['text'] }}{% endfor %}": "leaves images out of the prompt",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template_of_no_use_is_refused(checkpoint, tmp_path, template):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=f"{folder}: its chat template {TEMPLATES[template]}.*; save the model's own"):
        load_codec(folder)


IMAGE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
COUNTED = "writes for none, one and two images <|image_pad|> {} times"
MISWRITTEN = {
    "another placeholder": ((IMAGE, "<image>"), COUNTED.format("0, 0, 0")),
    "its boundaries alone": ((IMAGE, "<|vision_start|><|vision_end|>"), COUNTED.format("0, 0, 0")),
    "twice": ((IMAGE, IMAGE * 2), COUNTED.format("0, 2, 4")),
    "the first alone": ((IMAGE, "{% if loop.first %}" + IMAGE + "{% endif %}"), COUNTED.format("0, 1, 1")),
    "the last alone": ((IMAGE, "{% if loop.revindex == 2 %}" + IMAGE + "{% endif %}"), COUNTED.format("0, 1, 1")),
    "one where there is none": (("<|im_start|>assistant", IMAGE + "<|im_start|>assistant"), COUNTED.format("1, 2, 3")),
    "a video's": ((IMAGE, VIDEO), COUNTED.format("0, 0, 0")),
    "a video twice": ((VIDEO, VIDEO * 2), "writes <|video_pad|> 2 times for one video"),
}


@pytest.mark.parametrize("mistake", MISWRITTEN)
def test_a_chat_template_that_miswrites_an_image_is_refused(checkpoint, tmp_path, mistake):
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    load_codec(folder)
    (right, wrong), told = MISWRITTEN[mistake]
    template = (folder / "chat_template.jinja").read_text()
    assert right in template
    (folder / "chat_template.jinja").write_text(template.replace(right, wrong))
    with pytest.raises(ModelError, match=re.escape(f"{folder}: its chat template {told}; save the model's own")):
        load_codec(folder)


def test_a_chat_template_whose_prompt_the_processor_cannot_read_is_refused(tiny_vlm):
    """As Gemma's, whose processor replaces `boi_token` and is given the tokens that it would have made of it."""

    class Gemma(type(tiny_vlm.processor)):
        def __call__(self, images=None, text=None, **kwargs):
            if images is not None and text[0].count(self.boi_token) != sum(map(len, images)):
                raise ValueError(f"Prompt contained {text[0].count(self.boi_token)} image tokens")
            return super().__call__(images=images, text=[text[0].replace("<boi>", self.image_token)], **kwargs)

    processor = Gemma(tiny_vlm.processor.image_processor, tiny_vlm.tokenizer, tiny_vlm.processor.video_processor,
                      chat_template=tiny_vlm.processor.chat_template)  # fmt: skip
    processor.boi_token = "<boi>"
    with pytest.raises(ModelError, match=r"its Gemma cannot read .+ 1 images \(Prompt contained 0 image tokens\)"):
        find_encoding(processor)
    processor.chat_template = processor.chat_template.replace("<|image_pad|>", "<boi>")
    assert find_encoding(processor) == tiny_vlm.encoding


def test_several_end_tokens_all_end_a_response(tiny_vlm, copy_of):
    model = copy_of(tiny_vlm).model
    model.generation_config.eos_token_id = [2, 0]
    vlm = wrap_model(model, tiny_vlm.processor)
    assert vlm.end_ids == (2, 0)
    assert vlm.without_end([7, 8, 0]) == [7, 8]
    assert vlm.without_end([7, 8]) == [7, 8]


def test_a_saved_model_is_the_same_model(tiny_vlm, checkpoint, problems, recipe):
    loaded = load_model(checkpoint)
    assert torch.equal(logits(loaded, problems[0], recipe), logits(tiny_vlm, problems[0], recipe))
    assert (loaded.end_ids, loaded.banned_ids) == (tiny_vlm.end_ids, tiny_vlm.banned_ids)


def test_a_saved_model_is_a_plain_checkpoint(tiny_vlm, checkpoint, problems):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint)
    assert torch.equal(model.lm_head.weight, tiny_vlm.model.lm_head.weight)
    assert model.generation_config.eos_token_id == tiny_vlm.end_ids[0]
    processor = AutoProcessor.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Why?"}]}]
    assert processor.apply_chat_template(messages) == tiny_vlm.processor.apply_chat_template(messages)
    pixels = [p(images=[problems[0].images[0]], text="<|image_pad|>", return_tensors="pt")["pixel_values"]
              for p in (processor, tiny_vlm.processor)]  # fmt: skip
    assert torch.equal(*pixels)


def test_a_checkpoint_s_sampling_defaults_are_kept_but_not_used(tiny_vlm, copy_of, tmp_path):
    model = copy_of(tiny_vlm).model
    model.generation_config.repetition_penalty = 1.05
    vlm = wrap_model(model, tiny_vlm.processor)
    assert vlm.model.generation_config.repetition_penalty in (None, 1.0)
    vlm.save(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.generation_config.repetition_penalty == 1.05


def test_sampling_defaults_that_contradict_each_other_are_saved_as_they_were(checkpoint, tmp_path):
    """Many checkpoints have them; transformers reads them with a warning."""
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.3, "eos_token_id": 2}')
    load_model(folder).save(tmp_path / "saved")
    saved = load_model(tmp_path / "saved")
    assert (saved.generation_config.do_sample, saved.generation_config.temperature, saved.end_ids) == (False, 0.3, (2,))


def test_pixel_bounds_reach_the_processor(checkpoint, problems, recipe):
    strip = next(problem for problem in problems if problem.images[0].width == 112)

    def visual_tokens(**bounds):
        vlm = load_model(checkpoint, **bounds)
        prompt = policy_prompt(vlm.processor, recipe.prompt, strip)
        encoded = encode_prompt(vlm, prompt)
        assert encode_prompt(load_codec(checkpoint, **bounds), prompt).ids == encoded.ids
        return sum(encoded.token_types)

    assert visual_tokens() == 4
    assert visual_tokens(max_pixels=28 * 56) <= 2
    assert visual_tokens(min_pixels=28 * 28 * 16) >= 16


def test_dtype_is_the_recipe_s(checkpoint):
    assert load_model(checkpoint, dtype="bfloat16").model.dtype == torch.bfloat16


@pytest.mark.slow
def test_torchvision_imports_after_stages_model():
    code = "import stages.model, torchvision; print(torchvision.__version__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_python_processes_that_are_started_import_torchvision_too(monkeypatch):
    """Those of vLLM, which import transformers before they may come to our code; a second call adds nothing."""
    monkeypatch.setenv("PYTHONPATH", "/first")
    declare_in_child_processes()
    declare_in_child_processes()
    assert os.environ["PYTHONPATH"].split(os.pathsep).count("/first") == 1
    assert len(os.environ["PYTHONPATH"].split(os.pathsep)) <= 2
    code = "import torchvision, transformers.models.auto.image_processing_auto, stages.model.loading"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("model", ["tiny_vlm", "tiny_internvl"])
@pytest.mark.parametrize("with_generation_config", [True, False])
def test_the_codec_alone_is_the_loaded_model_s(request, tmp_path, model, with_generation_config):
    request.getfixturevalue(model).save(tmp_path)
    if not with_generation_config:
        (tmp_path / "generation_config.json").unlink()
    vlm, codec = load_model(tmp_path), load_codec(tmp_path)
    assert (codec.end_ids, codec.banned_ids, codec.max_length) == (vlm.end_ids, vlm.banned_ids, vlm.max_length)
    assert codec.max_length == vlm.model.config.text_config.max_position_embeddings
