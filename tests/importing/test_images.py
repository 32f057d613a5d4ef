"""Images of a data set: paths stay inside its folder, what is too large or broken is not read."""

import os
import zlib

import pytest
from PIL import Image

import stages.artifacts.problems as problems
import stages.importing.images as images
from pictures import png
from stages.importing.cells import Unfit
from stages.importing.images import ImageReader


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "set"
    (inside / "pictures").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(png()["bytes"])
    for name in ("a.png", "pictures/b.png"):
        (inside / name).write_bytes(png()["bytes"])
    return inside


def reason(folder, value):
    with pytest.raises(Unfit) as unfit:
        ImageReader(folder).read(value)
    return str(unfit.value)


def test_paths_are_read_from_the_folder(folder):
    reader = ImageReader(folder)
    for value in ("a.png", "pictures/b.png", "pictures/../a.png", str(folder / "a.png"), {"path": "a.png"}):
        assert reader.read(value) == {"bytes": png()["bytes"], "path": None}


def test_a_folder_that_is_itself_a_link_is_fine(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)

    assert ImageReader(tmp_path / "link").read("a.png")["bytes"] == png()["bytes"]


def test_bytes_go_before_a_path(folder):
    assert ImageReader(folder).read({"bytes": png(9)["bytes"], "path": "a.png"})["bytes"] == png(9)["bytes"]
    assert ImageReader(None).read(png()["bytes"])["bytes"] == png()["bytes"]


def test_a_path_that_leaves_the_folder_is_refused(folder, tmp_path):
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "up").symlink_to(tmp_path)
    for value in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "up/secret.png", "/etc/hostname", ".."):
        assert reason(folder, value) == "image_outside_folder"


def test_what_is_not_a_file_is_not_found(folder):
    os.mkfifo(folder / "pipe")
    (folder / "round").symlink_to("round")
    for value in ("gone.png", "pictures", "pipe", "round", "a\0b", "x" * 5000):
        assert reason(folder, value) == "image_not_found"


def test_broken_images(folder):
    whole = png(40, 40)["bytes"]
    noise = Image.effect_noise((60, 60), 60)
    noise.save(folder / "noise.png")
    for value in (b"no image", whole[:30], (folder / "noise.png").read_bytes()[:500], b"P6 2\x8f5 4 255\n"):
        assert reason(folder, value) == "image_broken"


def test_large_images_are_left_out_unread(folder, monkeypatch):
    monkeypatch.setattr(problems, "MAX_PIXELS", 12)
    assert ImageReader(folder).read(png(4, 3))
    assert reason(folder, png(13, 1)) == "image_over_limit"
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    assert reason(folder, "a.png") == "image_over_limit"
    assert reason(folder, png(1, 1)) == "image_over_limit"


def test_a_decompression_bomb_is_over_the_limit():
    small = png(1, 1)["bytes"]
    header = small[12:16] + (60_000).to_bytes(4, "big") * 2 + small[24:29]
    bomb = small[:12] + header + zlib.crc32(header).to_bytes(4, "big") + small[33:]
    assert reason(None, bomb) == "image_over_limit"
