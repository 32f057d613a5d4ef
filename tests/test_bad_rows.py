"""Bad rows that are dropped leave no other trace, and token ids are read by the tokenizer that made them alone."""

import io
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.artifacts.columns import DROPPED, GROUPS, METRICS, PROBLEMS, REPAIRS, ROLLOUTS
from stages.artifacts.problems import ProblemSet, encode_image
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.checks.problem_check import ProblemCheck
from stages.errors import ModelError
from stages.model.batches import encode_prompt
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s4_realign_pairs import RealignPairs
from stages.s5_train_policy import TrainPolicy

RECIPE = load_recipe(
    "digits",
    [
        *("rollout.problems=null", "rollout.samples_per_problem=3", "rollout.rows_per_shard=12", "masks.candidates=2"),
        *("masks.on_no_correct=repair", "train.problems_per_step=2", "model.dtype=float32"),
    ],
)
ALGORITHMS = load_recipe("digits", ["train.gate=none", "train.problems_per_step=2", "model.dtype=float32"])


def write(path, spec, rows):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=spec.schema()), path)
    return path


def rows_of(path, spec):
    return list(iterate_rows(path, spec))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad-rows")


@pytest.fixture(scope="module")
def clean(folder, digits):
    rows = pq.read_table(digits / "problems_train.parquet").slice(0, 8).to_pylist()
    return write(folder / "clean.parquet", PROBLEMS, rows)


@pytest.fixture(scope="module")
def dirty(folder, clean):
    """The same problems among bad ones."""
    good = rows_of(clean, PROBLEMS)
    no_image = [{"bytes": b"none", "path": None}]
    bad = [good[0], good[1] | {"problem_id": "b1", "images": no_image}, good[2] | {"problem_id": "b2", "answer": ""}]
    return write(folder / "dirty.parquet", PROBLEMS, [bad[1], *good[:5], bad[0], bad[2], *good[5:]])


@pytest.fixture(scope="module")
def rollouts(folder, clean, base_dir):
    execute(Rollout(RECIPE, clean, base_dir), folder / "rollouts")
    return folder / "rollouts"


@pytest.fixture(scope="module")
def groups(folder, clean, rollouts, base_dir):
    execute(BuildMasks(RECIPE, rollouts, clean, base_dir, base_dir), folder / "groups")
    return folder / "groups"


def test_rollouts_are_those_of_the_good_problems(clean, dirty, rollouts, base_dir, tmp_path):
    manifest = execute(Rollout(RECIPE, dirty, base_dir, "drop"), tmp_path / "out").manifest
    assert rows_of(tmp_path / "out", ROLLOUTS) == rows_of(rollouts, ROLLOUTS)
    assert (manifest["rows_in"], manifest["rows_out"]) == (8, 24)
    reasons = {"duplicate_id": 1, "image_undecodable": 1, "answer_unreadable": 1}
    assert {name: manifest["dropped"][name] for name in reasons} == reasons
    first = ProblemSet(clean).ids[0]
    listed = [(row["problem_id"], row["reason"]) for row in rows_of(tmp_path / "out" / "dropped.parquet", DROPPED)]
    assert listed == [(first, "duplicate_id"), ("b1", "image_undecodable"), ("b2", "answer_unreadable")]
    assert all("dirty.parquet" in row["detail"] or "problem b2: " in row["detail"]
               for row in rows_of(tmp_path / "out" / "dropped.parquet", DROPPED))  # fmt: skip


def test_the_draw_is_checked_and_nothing_beyond_it(dirty, base_dir):
    problems = ProblemSet(dirty, on_bad_row="drop")
    assert "b1" not in problems.draw(2, seed=1)
    recipe = RECIPE.model_copy(update={"rollout": RECIPE.rollout.model_copy(update={"problems": 2})})
    stages = [Rollout(recipe.model_copy(update={"seed": seed}), dirty, base_dir, "drop") for seed in range(8)]
    drawn = [stage.usable for stage in stages]
    assert all(len(usable) + len(usable.bad) == 3 for usable in drawn)  # the id that stands twice is found in any case
    assert {len(usable) for usable in drawn} > {2}


def without(rows, problem_id):
    return [row for row in rows if row["problem_id"] != problem_id]


def test_masks_are_those_of_the_good_rollouts(clean, rollouts, base_dir, tmp_path):
    rows = rows_of(rollouts, ROLLOUTS)
    bad = rows[4]
    clean_rollouts = write(tmp_path / "clean" / "rollouts-00000.parquet", ROLLOUTS, without(rows, bad["problem_id"]))
    dirty_rows = [row | {"reward": float("nan")} if row is bad else row for row in rows]
    dirty_rollouts = write(tmp_path / "dirty" / "rollouts-00000.parquet", ROLLOUTS, dirty_rows)
    execute(BuildMasks(RECIPE, clean_rollouts.parent, clean, base_dir, base_dir), tmp_path / "expected")
    stage = BuildMasks(RECIPE, dirty_rollouts.parent, clean, base_dir, base_dir, "drop")
    manifest = execute(stage, tmp_path / "out").manifest
    for spec in (GROUPS, REPAIRS):
        assert rows_of(tmp_path / "out", spec) == rows_of(tmp_path / "expected", spec)
    assert manifest["dropped"]["not_finite"] == 1
    (listed,) = rows_of(tmp_path / "out" / "dropped.parquet", DROPPED)
    assert (listed["problem_id"], listed["reason"]) == (bad["problem_id"], "not_finite")


def test_training_is_that_on_the_good_groups(clean, groups, base_dir, tmp_path):
    rows = rows_of(groups, GROUPS)
    lost = rows[0]["problem_id"]
    expected = write(tmp_path / "clean" / "groups-00000.parquet", GROUPS, without(rows, lost))
    wrong = [rows[0] | {"ids": [10_000] * len(rows[0]["ids"])}, *rows[1:]]
    dirty = write(tmp_path / "dirty" / "groups-00000.parquet", GROUPS, wrong)
    execute(TrainPolicy(ALGORITHMS, expected.parent, clean, base_dir), tmp_path / "expected")
    manifest = execute(
        TrainPolicy(ALGORITHMS, dirty.parent, clean, base_dir, on_bad_row="drop"), tmp_path / "out"
    ).manifest
    losses = [
        [row["value"] for row in rows_of(tmp_path / name / "metrics.parquet", METRICS) if row["metric"] == "loss"]
        for name in ("expected", "out")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) > 1
    assert manifest["dropped"]["unknown_token"] == 1


@pytest.fixture(scope="module")
def stranger(folder, base_dir):
    """The base policy with two letters of its tokenizer exchanged."""
    copy = shutil.copytree(base_dir, folder / "stranger")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    return copy


def test_rollouts_and_groups_of_another_tokenizer_are_refused(clean, rollouts, groups, base_dir, stranger):
    other = rf"token ids are of the tokenizer of {base_dir} \(\w{{12}}\), not of that of {stranger} \(\w{{12}}\); give"
    with pytest.raises(ModelError, match=f"rollouts: its {other}"):
        BuildMasks(RECIPE, rollouts, clean, stranger, stranger).plan()
    with pytest.raises(ModelError, match=f"groups: its {other}"):
        TrainPolicy(RECIPE, groups, clean, stranger).plan()
    pairs = RealignPairs(RECIPE, groups).plan()
    assert (
        pairs.recipe["vocabulary"]
        == BuildMasks(RECIPE, rollouts, clean, base_dir, base_dir).plan().recipe["vocabulary"]
    )


def test_a_repair_model_of_another_tokenizer_is_refused(clean, rollouts, base_dir, stranger):
    told = (
        rf"{stranger}: its tokenizer \(\w{{12}}\) is not that of {base_dir} \(\w{{12}}\), whose token ids it is to read"
    )
    with pytest.raises(ModelError, match=told):
        BuildMasks(RECIPE, rollouts, clean, stranger, base_dir).plan()
    with pytest.raises(ModelError, match=told):
        RlRepair(RECIPE, clean, base_dir, stranger).plan()


def test_a_reference_of_another_tokenizer_is_refused(clean, rollouts, base_dir, stranger, tmp_path):
    """A KL term would compare with its log-probs of other words."""
    recipe = load_recipe("digits", ["masks.repairer=sibling", "train.objective.kl_coef=0.1"])
    execute(BuildMasks(recipe, rollouts, clean, None, base_dir), tmp_path / "groups")
    with pytest.raises(ModelError, match=rf"{stranger}: its tokenizer \(\w{{12}}\) is not that of {base_dir}"):
        TrainPolicy(recipe, tmp_path / "groups", clean, base_dir, reference=stranger).plan()


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def test_unusual_images_are_usable_to_the_last_token(folder, digits, base_vlm):
    """What a strict check might refuse with the broken ones."""
    red, blue = (Image.new("RGB", (30, 20), colour) for colour in ("red", "blue"))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {
        "cmyk": encoded(red.convert("CMYK"), "JPEG"),
        "grey16": encoded(Image.new("I;16", (30, 20), 0x8000), "PNG"),
        "animated": encoded(red, "GIF", save_all=True, append_images=[blue]),
        "rotated": encoded(red, "JPEG", exif=exif),
        "pixel": encode_image(Image.new("RGB", (1, 1))),
        "palette": encoded(red.quantize(4), "PNG"),
        "one bit": encoded(red.convert("1"), "PNG"),
        "two pictures": encoded(red, "MPO", save_all=True, append_images=[blue]),
        **{name: encoded(red, name) for name in ("WEBP", "BMP", "TIFF", "PPM")},
    }
    row = pq.read_table(digits / "problems_train.parquet").slice(0, 1).to_pylist()[0]
    rows = [row | {"problem_id": name, "images": [image]} for name, image in kinds.items()]
    problems = ProblemSet(write(folder / "unusual.parquet", PROBLEMS, rows))
    usable = ProblemCheck(RECIPE, base_vlm).usable(problems, problems.ids, "fail")
    assert list(usable.ids) == list(kinds)
    for problem in usable:
        prompt = policy_prompt(base_vlm.processor, RECIPE.prompt, problem)
        assert encode_prompt(base_vlm, prompt).ids.count(base_vlm.processor.image_token_id) >= 1
