"""Problems: ids that join, images as a viewer shows them, draws that repeat."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.artifacts.columns import PROBLEMS, REPAIR_SET
from stages.artifacts.problems import ProblemSet, encode_image, encoded_images, open_problems
from stages.artifacts.store import write_rows
from stages.errors import DataError

RED = (255, 0, 0)


def row(problem_id="p0", image=None, **changes):
    image = encode_image(Image.new("RGB", (2, 2))) if image is None else image
    return {"problem_id": problem_id, "question": "q", "images": [image], "answer": "1", "kind": "sum"} | changes


def saved(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def problem_set(tmp_path, *rows, spec=PROBLEMS, group=256):
    file = tmp_path / f"{spec.name}.parquet"
    table = pa.Table.from_pylist(list(rows), schema=spec.schema())
    pq.write_table(table, file, row_group_size=group)
    return ProblemSet(file, spec)


def decoded(tmp_path, image):
    (found,) = problem_set(tmp_path, row(image=image))["p0"].images
    assert found.mode == "RGB"
    return found


def test_problems_come_back_in_order_across_row_groups_and_shards(tmp_path):
    for shard in range(2):
        rows = [row(f"p{shard}{index}", answer=f"{shard}{index}") for index in range(3)]
        table = pa.Table.from_pylist(rows, schema=PROBLEMS.schema())
        pq.write_table(table, tmp_path / f"problems-{shard:05d}.parquet", row_group_size=2)
    problems = ProblemSet(tmp_path)

    assert len(problems) == 6
    assert list(problems.ids) == ["p00", "p01", "p02", "p10", "p11", "p12"]
    assert [problem.answer for problem in problems] == ["00", "01", "02", "10", "11", "12"]
    assert [problem.answer for problem in problems.many(["p12", "p01"])] == ["12", "01"]


def test_problems_that_were_opened_are_opened_anew_where_their_file_has_changed(tmp_path):
    first = problem_set(tmp_path, row(answer="1")).path
    opened = open_problems(first, "fail")
    assert open_problems(first, "fail") is opened
    assert opened["p0"].answer == "1"

    problem_set(tmp_path, row(answer="2"))
    assert open_problems(first, "fail")["p0"].answer == "2"


@pytest.mark.parametrize(("held", "reads"), [(1 << 20, 6), (1, 12)])
def test_row_groups_are_read_once_where_they_fit_in_memory(tmp_path, monkeypatch, held, reads):
    """Six row groups in turn, twice: four of them alone stay in memory whatever they take."""
    monkeypatch.setattr("stages.artifacts.problems.BYTES_HELD", held)
    problems = problem_set(tmp_path, *[row(f"p{number}") for number in range(6)], group=1)
    assert [problem.problem_id for _ in range(2) for problem in problems] == [f"p{n}" for n in range(6)] * 2
    assert problems._read_group.cache_info().misses == reads


@pytest.mark.parametrize(("side", "count", "stays"), [(8, 100, True), (1700, 8, True), (1700, 9, False)])
def test_images_stay_decoded_while_there_is_room(tmp_path, side, count, stays):
    """Eight of nearly three megapixels, and as many small ones as fit."""
    images = [encode_image(Image.new("RGB", (side, side), (number, 0, 0))) for number in range(count)]
    problems = problem_set(tmp_path, *[row(f"p{number}", image) for number, image in enumerate(images)])
    first, again = ([problem.images[0] for problem in problems] for _ in range(2))
    assert [a is b for a, b in zip(first, again, strict=True)] == [stays] * count
    assert [image.getpixel((0, 0)) for image in again] == [(number, 0, 0) for number in range(count)]


def test_a_repair_sets_columns_reach_the_reward_function(tmp_path):
    problem = problem_set(tmp_path, row(error="6", repair="7"), spec=REPAIR_SET)["p0"]

    expected = {"problem_id": "p0", "question": "q", "answer": "1", "kind": "sum", "error": "6", "repair": "7"}
    assert problem.as_row() == expected | {"images": problem.images, "video": None, "choices": None, "preferred": None}


def test_a_column_that_a_file_lacks_is_null(tmp_path):
    table = pa.Table.from_pylist([row()], schema=PROBLEMS.schema()).drop_columns(["preferred"])
    pq.write_table(table, tmp_path / "problems.parquet")

    assert ProblemSet(tmp_path / "problems.parquet")["p0"].preferred is None
    assert problem_set(tmp_path, row(preferred="7."))["p0"].preferred == "7."


def test_an_id_that_stands_twice_is_named_across_shards(tmp_path):
    for shard in range(2):
        write_rows(tmp_path / f"problems-{shard:05d}.parquet", PROBLEMS, [row("same")])
    with pytest.raises(DataError, match=r"problems-00001\.parquet: problem_id same stands twice; .*make them unique"):
        ProblemSet(tmp_path)


def test_an_id_that_is_missing_is_named_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="no problem gone; give the problems that the other inputs were made from"):
        problem_set(tmp_path, row())["gone"]


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"problems\.parquet: no rows in it"):
        problem_set(tmp_path)


def test_a_null_answer_is_refused_before_any_work(tmp_path):
    rows = [row(f"p{index}") for index in range(5)] + [row("p5", answer=None)]
    with pytest.raises(DataError, match=r"problems\.parquet row 5: answer is null"):
        problem_set(tmp_path, *rows, group=2)


@pytest.mark.parametrize("images", [None, [None]])
def test_a_null_image_is_placed_by_its_row(images, tmp_path):
    problems = problem_set(tmp_path, row("p0"), row("p1"), row("p2", images=images), group=2)
    with pytest.raises(DataError, match=r"problems\.parquet row 2: images is null"):
        problems["p2"]


def test_a_problem_may_have_no_image_or_several(tmp_path):
    two = [encode_image(Image.new("RGB", (width, 1))) for width in (3, 5)]
    problems = problem_set(tmp_path, row("none", images=[]), row("two", images=two))

    assert list(problems["none"].images) == []
    assert [image.width for image in problems["two"].images] == [3, 5]


@pytest.mark.parametrize("data", [None, b""])
def test_an_image_without_bytes_is_named_with_the_remedy(data, tmp_path):
    image = {"bytes": data, "path": "/photos/1.png"}
    with pytest.raises(DataError, match=r"problem p0 image 0: no bytes; embed the image"):
        decoded(tmp_path, image)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00",
        b"not an image",
        saved(Image.effect_noise((40, 40), 50), "PNG")["bytes"][:200],  # OSError
        b"P6 2\x8f5 4 255\n",  # ValueError
    ],
)
def test_an_image_that_cannot_be_decoded_is_named_with_the_remedy(data, tmp_path):
    with pytest.raises(DataError, match=r"problem p0 image 0: cannot be decoded \(.*\); replace it or drop the row"):
        decoded(tmp_path, {"bytes": data, "path": None})


def test_an_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, 0] = RED  # the left edge; orientation 6 turns it to the top
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decoded(tmp_path, saved(Image.fromarray(pixels), "PNG", exif=exif))

    assert image.size == (2, 4)
    assert [image.getpixel((0, y)) for y in range(4)] == [RED, (0, 0, 0), (0, 0, 0), (0, 0, 0)]


def test_cmyk_keeps_its_colour(tmp_path):
    red, green, blue = decoded(tmp_path, saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))

    assert red > 200
    assert green < 60
    assert blue < 60


def test_grey_is_grey(tmp_path):
    assert decoded(tmp_path, saved(Image.new("L", (2, 2), 90), "PNG")).getpixel((0, 0)) == (90, 90, 90)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    image = Image.fromarray(np.full((2, 2), 0x8000, np.uint16))
    assert decoded(tmp_path, saved(image, "PNG")).getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken(image_format, tmp_path):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 0, 255)))
    image = decoded(tmp_path, saved(first, image_format, save_all=True, append_images=[second]))
    assert image.getpixel((4, 4)) == RED


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_greys_of_32_bits_are_refused_not_clipped(kind, tmp_path):
    image = saved(Image.fromarray(np.full((2, 2), 0.5).astype(kind)), "TIFF")
    with pytest.raises(DataError, match=r"nobody knows which of its 32-bit values is white; save it with 8 or 16 bits"):
        decoded(tmp_path, image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(orientation, tmp_path):
    upright = np.zeros((2, 3, 3), np.uint8)
    upright[0, 0] = RED
    undo = {1: "", 2: "h", 3: "hv", 4: "v", 5: "t", 6: "tv", 7: "thv", 8: "th"}  # turned so as it is stored
    turn = {"h": np.fliplr, "v": np.flipud, "t": lambda pixels: pixels.transpose(1, 0, 2)}
    stored = upright
    for letter in undo[orientation]:
        stored = turn[letter](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decoded(tmp_path, saved(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif))
    assert np.array_equal(np.asarray(image), upright)


def test_transparent_parts_are_white(tmp_path):
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (*RED, 255))
    shown = decoded(tmp_path, saved(image, "PNG"))

    assert [shown.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), RED]


def frames(*widths):
    return [encode_image(Image.new("RGB", (width, 1), (index, 0, 0))) for index, width in enumerate(widths)]


def test_a_video_has_its_frames_in_order_and_their_rate(tmp_path):
    video = problem_set(tmp_path, row(images=[], video=frames(5, 5, 5), fps=12.5))["p0"].video

    assert [frame.getpixel((0, 0)) for frame in video.decoded()] == [(0, 0, 0), (1, 0, 0), (2, 0, 0)]
    assert video.fps == 12.5


def test_a_video_without_a_rate_has_two_frames_a_second(tmp_path):
    assert problem_set(tmp_path, row(video=frames(5)))["p0"].video.fps == 2.0


def test_a_problem_is_visual_with_an_image_or_a_video(tmp_path):
    rows = [
        row("image"),
        row("video", images=[], video=frames(1)),
        row("none", images=[]),
        row("empty", images=[], video=[]),
    ]
    problems = problem_set(tmp_path, *rows)

    assert [problem.problem_id for problem in problems if problem.is_visual] == ["image", "video"]
    assert [problem.problem_id for problem in problems if problem.video] == ["video"]


@pytest.mark.parametrize("spec", [PROBLEMS, REPAIR_SET], ids=lambda spec: spec.name)
@pytest.mark.parametrize("absent", [("video", "fps"), ("fps",)])
def test_files_without_the_columns_of_videos_are_read(absent, spec, tmp_path):
    fields = [field for field in spec.schema() if field.name not in absent]
    values = row(error="6", repair="7", video=frames(3, 3))
    pq.write_table(pa.Table.from_pylist([values], schema=pa.schema(fields)), tmp_path / "problems.parquet")
    problem = ProblemSet(tmp_path / "problems.parquet", spec)["p0"]

    assert len(problem.images) == 1
    assert (problem.video is None) == ("video" in absent)
    assert problem.extra == {"choices": None, "preferred": None} | (
        {"error": "6", "repair": "7"} if spec is REPAIR_SET else {}
    )


@pytest.mark.parametrize("fps", [0.0, -2.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused_before_any_work(fps, tmp_path):
    with pytest.raises(DataError, match=r"problems\.parquet problem p1: fps is .*; give the frames' rate, per second"):
        problem_set(tmp_path, row(), row("p1", video=frames(1), fps=fps))


def test_a_null_frame_is_named(tmp_path):
    video = problem_set(tmp_path, row(video=[*frames(1), None]))["p0"].video
    with pytest.raises(DataError, match=r"problem p0 frame 1: no bytes; embed the image"):
        video.decoded()


def test_frames_that_differ_in_size_are_named(tmp_path):
    video = problem_set(tmp_path, row(video=frames(4, 4, 3)))["p0"].video
    with pytest.raises(DataError, match=r"problem p0 frame 2: 3x1 pixels, frame 0 has 4x1; give them one size"):
        video.decoded()


def test_encoding_keeps_the_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(decoded(tmp_path, encode_image(Image.fromarray(pixels)))), pixels)


def test_draws_repeat_by_seed_and_never_repeat_a_problem(tmp_path):
    problems = problem_set(tmp_path, *[row(f"p{index}") for index in range(40)])
    drawn = list(problems.draw(20, seed=3))

    assert drawn == list(problems.draw(20, seed=3))
    assert drawn != list(problems.draw(20, seed=4))
    assert len(set(drawn)) == 20
    assert set(drawn) < set(problems.ids)
    assert all(type(problem_id) is str for problem_id in drawn)


@pytest.mark.parametrize("count", [None, 3, 99])
def test_a_draw_of_all_keeps_the_order(count, tmp_path):
    problems = problem_set(tmp_path, *[row(f"p{index}") for index in range(3)])
    assert list(problems.draw(count, seed=1)) == ["p0", "p1", "p2"]


def test_images_pass_on_as_they_lie_in_the_file_or_as_pngs(tmp_path):
    jpeg = saved(Image.new("RGB", (4, 2), RED), "JPEG")
    problem = problem_set(tmp_path, row(image=jpeg))["p0"]
    assert encoded_images(problem.images) == [jpeg]
    (png,) = encoded_images(list(problem.images))
    assert np.array_equal(Image.open(io.BytesIO(png["bytes"])), problem.images[0])


def test_no_flipped_bit_changes_a_problem_unseen(tmp_path):
    rows = [row(f"p{k}", image=saved(Image.new("RGB", (4, 4), (k, 0, 0)), "PNG")) for k in range(4)]
    file, refused = tmp_path / "problems.parquet", 0
    write_rows(file, PROBLEMS, rows)

    def read():
        problems = ProblemSet(file)
        return [problem.as_row() | {"images": problem.images.encoded} for problem in problems]

    expected, content = read(), file.read_bytes()
    for k in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[k] ^= 1 << k % 8
        file.write_bytes(flipped)
        try:
            found = read()
        except DataError:
            refused += 1
        else:
            assert found == expected, f"byte {k}"
    assert refused > 100
