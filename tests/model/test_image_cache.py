"""The image cache gives the image processor's own tensors, whatever happened to its files."""

import logging
import shutil

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from forked import server
from stages.errors import ModelError
from stages.model.image_cache import CachedImageProcessor
from stages.model.loading import load_model
from stages.recipe import Recipe

INTERNVL_TOKENS = {"start_image_token": "<img>", "end_image_token": "</img>"}
INTERNVL_TOKENS |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}


def qwen(folder):
    return transformers.AutoProcessor.from_pretrained(folder), "<|vision_start|><|image_pad|><|vision_end|>"


def internvl(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, extra_special_tokens=INTERNVL_TOKENS)
    size = {"height": 28, "width": 28}
    images, videos = transformers.GotOcr2ImageProcessor(size=size), transformers.InternVLVideoProcessor(size=size)
    return transformers.InternVLProcessor(images, tokenizer, videos, image_seq_length=1), "<IMG_CONTEXT>"


@pytest.fixture(scope="module")
def checkpoint(tiny_vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_vlm.save(folder)
    return folder


@pytest.fixture(params=[qwen, internvl], ids=["qwen2.5-vl", "internvl"])
def family(request, checkpoint):
    """A function that makes a processor, and its placeholder for an image."""
    return lambda: request.param(checkpoint)


@pytest.fixture
def cached(tmp_path):
    """A function that gives a processor the cache."""

    def with_cache(processor):
        processor.image_processor = CachedImageProcessor(processor.image_processor, tmp_path / "cache")
        return processor

    return with_cache


@pytest.fixture
def entries(tmp_path):
    return lambda: sorted(file for file in (tmp_path / "cache").rglob("*") if file.is_file())


def pictures():
    """Four sizes, two pictures of one of them, and a repeated one."""
    sizes = [(28, 28), (112, 28), (28, 140), (112, 28), (61, 47)]
    noise = [Image.effect_noise(size, 60 + 20 * index).convert("RGB") for index, size in enumerate(sizes)]
    return [*noise, noise[0]]


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype
        assert torch.equal(value, right[name]), name


def encode(processor, placeholder, images):
    return processor(images=images, text=[placeholder * len(images) + "Why?"], return_tensors="pt")


def test_prompts_are_those_of_the_plain_processor(family, cached, entries):
    plain, placeholder = family()
    processor, images = cached(family()[0]), pictures()
    expected = encode(plain, placeholder, images)
    assert len(set(map(len, (expected["pixel_values"], images, expected["input_ids"][0])))) == 3
    for _ in range(2):
        same(encode(processor, placeholder, images), expected)
    assert len(entries()) == 5
    same(encode(processor, placeholder, images[1:2]), encode(plain, placeholder, images[1:2]))
    assert len(entries()) == 5


@pytest.mark.parametrize("make", [transformers.Qwen2VLImageProcessor, transformers.GotOcr2ImageProcessor])
def test_an_image_is_processed_once(make, tmp_path):
    processed = []

    class Recording(make):
        def preprocess(self, images, **kwargs):
            processed.extend(images)
            return super().preprocess(images, **kwargs)

    picture = pictures()[1]
    for _ in range(2):
        cached = CachedImageProcessor(Recording(), tmp_path)
        cached([picture], return_tensors="pt")
        cached([picture.copy(), picture], return_tensors="pt")
    assert processed == [picture]


@pytest.mark.parametrize(
    "settings", [{"max_pixels": 28 * 28 * 4}, {"image_mean": [0.0, 0.0, 0.0]}, {"do_convert_rgb": False}]
)
def test_other_settings_are_other_entries(settings, tmp_path):
    picture = pictures()[1]
    for processor in (transformers.Qwen2VLImageProcessor(), transformers.Qwen2VLImageProcessor(**settings)):
        cached = CachedImageProcessor(processor, tmp_path)
        same(cached([picture], return_tensors="pt"), processor([picture], return_tensors="pt"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_another_call_is_another_entry(tmp_path):
    processor, picture = transformers.GotOcr2ImageProcessor(size={"height": 28, "width": 28}), pictures()[1]
    cached = CachedImageProcessor(processor, tmp_path)
    for call in ({"crop_to_patches": True}, {"crop_to_patches": False}, {"crop_to_patches": True, "max_patches": 2}):
        same(cached([picture], return_tensors="pt", **call), processor([picture], return_tensors="pt", **call))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_what_an_image_shows_is_its_content(tmp_path):
    wide = Image.effect_noise((112, 28), 50)
    tall = Image.frombytes("L", (28, 112), wide.tobytes())
    palette = Image.frombytes("P", (112, 28), wide.tobytes())
    palette.putpalette([255, 0, 0] * 256)
    green = palette.copy()
    green.putpalette([0, 255, 0] * 256)
    inks = Image.frombytes("CMYK", (28, 28), wide.tobytes())
    opaque = Image.frombytes("RGBA", (28, 28), wide.tobytes())
    processor = transformers.Qwen2VLImageProcessor()
    cached = CachedImageProcessor(processor, tmp_path)
    for image in (wide, tall, palette, green, inks, opaque):
        same(cached([image], return_tensors="pt"), processor([image], return_tensors="pt"))
    assert len(list(tmp_path.rglob("*.safetensors"))) == 6


def test_what_is_not_asked_for_as_tensors_is_not_cached(tmp_path):
    processor, picture = transformers.GotOcr2ImageProcessor(), pictures()[0]
    plain, cached = processor([picture]), CachedImageProcessor(processor, tmp_path)([picture])
    assert plain["num_patches"] == cached["num_patches"]
    assert list(tmp_path.iterdir()) == []


def cut(size):
    def damage(file):
        file.write_bytes(file.read_bytes()[: size if size >= 0 else file.stat().st_size + size])

    return damage


def changed(file):
    data = bytearray(file.read_bytes())
    data[-1000] ^= 1
    file.write_bytes(data)


def zeroed(file):
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))


def without_checksum(file):
    save_file({name: value.clone() for name, value in load_file(file).items()}, file)


@pytest.mark.parametrize(
    "damage",
    [cut(0), cut(4), cut(60), cut(-1), changed, zeroed, without_checksum],
    ids=["empty", "no header", "half a header", "a byte short", "a bit changed", "half zeros", "no checksum"],
)
def test_a_damaged_entry_is_made_again(damage, family, cached, entries, caplog):
    plain, placeholder = family()
    processor, images = cached(family()[0]), pictures()[1:3]
    encode(processor, placeholder, images)
    whole = {file: file.read_bytes() for file in entries()}
    broken = entries()[0]
    damage(broken)
    assert broken.read_bytes() != whole[broken]

    with caplog.at_level(logging.WARNING):
        same(encode(processor, placeholder, images), encode(plain, placeholder, images))

    assert [str(broken) in record.getMessage() for record in caplog.records] == [True]
    assert {file: file.read_bytes() for file in entries()} == whole


def test_a_saved_processor_is_the_plain_one(family, cached, tmp_path):
    plain, _ = family()
    plain.save_pretrained(tmp_path / "plain")
    cached(family()[0]).save_pretrained(tmp_path / "cached")
    files = {file.name: file.read_bytes() for file in (tmp_path / "plain").iterdir()}
    assert "processor_config.json" in files
    assert {file.name: file.read_bytes() for file in (tmp_path / "cached").iterdir()} == files


def test_a_model_loads_with_the_cache_and_saves_without(checkpoint, tmp_path):
    vlm = load_model(checkpoint, max_pixels=28 * 56, image_cache=tmp_path / "cache")
    of_the_check = len(list((tmp_path / "cache").rglob("*.safetensors")))  # a template is tried on images
    images = pictures()
    placeholder = "<|image_pad|>"
    expected = encode(load_model(checkpoint, max_pixels=28 * 56).processor, placeholder, images)
    same(encode(vlm.processor, placeholder, images), expected)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == of_the_check + 5
    vlm.save(tmp_path / "saved")
    assert (
        type(transformers.AutoProcessor.from_pretrained(tmp_path / "saved").image_processor)
        is transformers.Qwen2VLImageProcessor
    )
    assert type(load_model(checkpoint).processor.image_processor) is transformers.Qwen2VLImageProcessor


def test_a_processor_that_may_look_at_images_together_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model\.image_cache: CLIPImageProcessor .* null"):
        CachedImageProcessor(transformers.CLIPImageProcessor(), tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match=r"model\.image_cache: .*file.* null"):
        CachedImageProcessor(transformers.Qwen2VLImageProcessor(), tmp_path / "file")(
            pictures()[:1], return_tensors="pt"
        )
    assert (tmp_path / "file").read_text() == "mine"


def _fill_again_and_again(folder, images, expected, barrier):
    processor = CachedImageProcessor(transformers.Qwen2VLImageProcessor(), folder)
    for _ in range(15):
        barrier.wait(60)
        same(processor(images, return_tensors="pt"), expected)
        barrier.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_processes_share_a_folder(tmp_path):
    images = pictures()
    expected = dict(transformers.Qwen2VLImageProcessor()(images, return_tensors="pt"))
    arguments = (tmp_path / "cache", images, expected, server().Barrier(2))
    workers = [server().Process(target=_fill_again_and_again, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_no_output_depends_on_the_cache_or_the_trackers(tmp_path):
    recipe = Recipe.model_validate({"model": {"image_cache": str(tmp_path)}, "tracking": {"trackers": ["jsonl"]}})
    assert recipe.model.image_cache == tmp_path
    assert recipe.subset("model", "train") == Recipe().subset("model", "train")
    assert "image_cache" not in recipe.subset("model")["model"]
