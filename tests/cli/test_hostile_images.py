"""Images that would have Pillow run a program, or fill the memory, are refused before they are decoded."""

import io
import json

import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from workspace import OPTIONS, PROBLEM

import forked
from stages.artifacts.columns import PROBLEMS
from stages.artifacts.label_studio import write_sheet
from stages.artifacts.problems import IMAGE_FORMATS, MAX_PIXELS
from stages.artifacts.store import write_rows

ROLLOUT = f"rollout {OPTIONS['rollout']} --out out --dry-run"


def encoded(image, image_format):
    buffer = io.BytesIO()
    image.save(buffer, image_format)
    return {"bytes": buffer.getvalue(), "path": None}


EPS = encoded(Image.new("RGB", (8, 8)), "EPS")


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """A file that appears once Ghostscript is run."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "gs"
    program.write_text(f"#!/bin/sh\n: > {tmp_path / 'mark'}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with Image.open(io.BytesIO(EPS["bytes"])) as opened, pytest.raises(UnidentifiedImageError):
        opened.load()
    (tmp_path / "mark").unlink()  # Pillow does run it
    return tmp_path / "mark"


def test_postscript_among_the_problems_is_not_run(mark, workspace, df):
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM, PROBLEM | {"problem_id": "p1", "images": [EPS]}])
    code, _, err = df(ROLLOUT)
    assert code == 1
    assert f"problem p1 image 0: cannot be decoded (none of {', '.join(IMAGE_FORMATS)}); replace it or drop" in err
    assert not mark.exists()


def test_postscript_in_a_data_set_is_not_run(mark, tmp_path, df, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.png").write_bytes(EPS["bytes"])
    (tmp_path / "data.jsonl").write_text(json.dumps({"question": "Sum?", "images": "x.png", "answer": "7"}))
    code, _, err = df("import-problems data.jsonl --out out")
    assert code == 1
    assert err.startswith("error: data.jsonl: no row of 1 fits: image_broken 1 (the first: x.png (from ")
    assert err.endswith("): cannot be decoded; replace it)\n")
    assert not mark.exists()


def test_postscript_on_its_way_into_a_sheet_is_not_run(mark, tmp_path):
    row = PROBLEM | {"error_id": "p0", "images": [EPS], "video": None, "error": "6"}
    with pytest.raises(UnidentifiedImageError):
        write_sheet(tmp_path, [row])
    assert not mark.exists()


@pytest.mark.parametrize("side", [7_072, 10_000])
def test_a_decompression_bomb_is_told_by_its_size_before_it_is_decoded(side, workspace, df):
    """Pillow has warnings for the larger one."""
    bomb = encoded(Image.new("1", (side, side)), "PNG")
    assert side**2 > MAX_PIXELS
    assert len(bomb["bytes"]) < 20_000
    write_rows(workspace / "problems.parquet", PROBLEMS, [PROBLEM, PROBLEM | {"problem_id": "p1", "images": [bomb]}])
    (line,) = forked.df(*ROLLOUT.split(), cwd=workspace).stderr.splitlines()
    assert f"problem p1 image 0: {side}x{side} pixels, at most 50,000,000 in all; shrink it or drop the row" in line
    code, out, _ = df(f"{ROLLOUT} --on-bad-row drop")
    assert (code, json.loads(out)["dropped"]) == (0, {"image_over_limit": 1})
