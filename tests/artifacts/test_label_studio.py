"""The sheet in the formats that Label Studio documents, and every form in which it can come back."""

import base64
import io
import json
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from stages.artifacts.label_studio import CONFIG, PLAIN, Annotated, read_annotated, write_sheet
from stages.artifacts.problems import encode_image
from stages.errors import DataError

RED, BLUE = (encode_image(Image.new("RGB", (4, 2), color)) for color in ("red", "blue"))
ERROR = "1 + 1 = 3.\n\nThe answer is 3 ≠ 2."


def encoded(image_format, mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, (4, 2), "red").save(buffer, format=image_format)
    return {"bytes": buffer.getvalue(), "path": None}


def row(error_id="p0", images=(RED,), video=None, **changes):
    return {
        "error_id": error_id,
        "problem_id": "p0",
        "question": "Sum?",
        "images": list(images),
        "answer": "2",
        "kind": None,
        "video": video,
        "error": ERROR,
    } | changes


@pytest.fixture
def written(tmp_path):
    """A function: rows as the tasks, the plain lines and the configuration that are written of them."""

    def write(*rows):
        write_sheet(tmp_path, rows)
        tasks = json.loads((tmp_path / "tasks-00.json").read_text(encoding="utf-8"))
        plain = [json.loads(line) for line in (tmp_path / PLAIN).read_text(encoding="utf-8").splitlines()]
        return tasks, plain, ElementTree.fromstring((tmp_path / CONFIG).read_text(encoding="utf-8"))

    return write


@pytest.fixture
def read(tmp_path):
    """A function: what is read from a file of this text."""

    def from_text(text):
        path = tmp_path / "annotated"
        path.write_text(text, encoding="utf-8")
        return list(read_annotated(path))

    return from_text


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(";base64,")[2]))).convert("RGB"))


def test_a_task_names_what_the_configuration_shows(written):
    tasks, _, config = written(row())
    (task,) = tasks
    shown = {tag.attrib[name][1:] for tag in config.iter() for name in ("value", "valueList")
             if tag.attrib.get(name, "").startswith("$")}  # fmt: skip
    assert shown <= task["data"].keys()
    area = config.find("TextArea")
    (prediction,) = task["predictions"]
    (result,) = prediction["result"]
    assert (
        (result["from_name"], result["to_name"]) == (area.attrib["name"], area.attrib["toName"]) == ("repair", "error")
    )
    assert config.find("Text").attrib["name"] == "error"
    assert (result["type"], result["value"]) == ("textarea", {"text": [ERROR]})
    assert task["data"]["error"] == ERROR


def test_images_are_embedded_in_order_as_they_are(written):
    jpeg = encoded("JPEG")
    tasks, plain, _ = written(row(images=[BLUE, jpeg]))
    for images in (tasks[0]["data"]["images"], plain[0]["images"]):
        assert [uri.partition(";")[0] for uri in images] == ["data:image/png", "data:image/jpeg"]
        assert base64.b64decode(images[1].partition(",")[2]) == jpeg["bytes"]
        assert (pixels(images[0]) == (0, 0, 255)).all()


def test_frames_of_a_video_follow_the_images(written):
    tasks, _, config = written(row(images=[], video=[BLUE, RED]), row(images=[RED], video=[BLUE]))
    colours = [[tuple(pixels(uri)[0, 0]) for uri in task["data"]["images"]] for task in tasks]
    assert colours == [[(0, 0, 255), (255, 0, 0)], [(255, 0, 0), (0, 0, 255)]]
    assert config.find("Image") is not None


def test_tasks_are_cut_into_files_that_label_studio_takes_at_once(tmp_path, monkeypatch):
    names = [f"p{number}" for number in range(7)]
    write_sheet(tmp_path, [row(name) for name in names])
    lines = (tmp_path / "tasks-00.json").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 9
    monkeypatch.setattr("stages.artifacts.label_studio.IMPORT_BYTES", 3 * len(lines[1].encode()))
    write_sheet(tmp_path, [row(name) for name in names])
    files = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(tmp_path.glob("tasks-*.json"))]
    assert [[task["data"]["error_id"] for task in tasks] for tasks in files] == [names[:3], names[3:6], names[6:]]


def test_a_format_that_browsers_do_not_show_becomes_a_png(written):
    _, plain, _ = written(row(images=[encoded("TIFF")]))
    (uri,) = plain[0]["images"]
    assert uri.startswith("data:image/png;base64,")
    assert (pixels(uri) == (255, 0, 0)).all()


def test_a_problem_without_images_has_a_blank_one_only_where_the_viewer_needs_it(written):
    tasks, plain, config = written(row(), row("p1", images=[]))
    assert config.find("Image") is not None
    assert (pixels(tasks[1]["data"]["images"][0]) == 255).all()
    assert plain[1]["images"] == []
    _, _, config = written(row(images=[]))
    assert config.find("Image") is None


def test_the_plain_sheet_is_prefilled_and_reads_back(written, tmp_path):
    _, plain, _ = written(row(), row("p1"))
    assert [line["repair"] for line in plain] == [ERROR, ERROR]
    found = list(read_annotated(tmp_path / PLAIN))
    assert found == [Annotated(f"row {i}", f"p{i}", ERROR, [ERROR], skipped=False, superseded=0) for i in range(2)]


def annotation(*texts, **changes):
    results = [{"from_name": "repair", "to_name": "error", "type": "textarea", "value": {"text": list(texts)}}]
    return {"id": 1, "result": results if texts else [], "was_cancelled": False} | changes


def exported(*annotations, **changes):
    task = {"id": 57, "data": {"error_id": "p0", "error": ERROR}, "annotations": list(annotations), "predictions": []}
    return json.dumps([task | changes], indent=2)


@pytest.mark.parametrize(
    ("annotations", "texts", "skipped", "superseded"),
    [
        ([annotation("a")], ["a"], False, 0),
        ([annotation()], [], False, 0),
        ([annotation("a", "b")], ["a", "b"], False, 0),
        ([], None, False, 0),
        ([annotation("a", was_cancelled=True)], None, True, 0),
        ([annotation("a"), annotation("b", was_cancelled=True)], ["a"], False, 0),
        ([annotation("new", updated_at="2026-02-01T08:00:00.5Z"), annotation("old", updated_at="2026-01-31T09:00:00Z")],
         ["new"], False, 1),
        ([annotation("first"), annotation("second"), annotation("third")], ["third"], False, 2),
    ],
)  # fmt: skip
def test_the_last_annotation_that_was_not_cancelled_counts(read, annotations, texts, skipped, superseded):
    assert read(exported(*annotations)) == [Annotated("task 57", "p0", ERROR, texts, skipped, superseded)]


def test_other_areas_of_an_own_configuration_are_left_alone(read):
    other = {"from_name": "comment", "to_name": "error", "type": "textarea", "value": {"text": ["hard"]}}
    both = annotation("a")
    both["result"].append(other)
    assert read(exported(both))[0].texts == ["a"]


@pytest.mark.parametrize(("text", "texts"), [("a", ["a"]), (["a", "b"], ["a", "b"]), (None, None), (3, [3])])
def test_flat_rows_are_json_min_or_the_plain_sheet(read, text, texts):
    flat = {"id": 57, "error_id": "p0", "error": ERROR, "repair": text, "annotator": 1}
    expected = Annotated("task 57", "p0", ERROR, texts, skipped=False, superseded=0)
    assert read(json.dumps([flat])) == read(json.dumps(flat) + "\n\n") == [expected]


def test_what_editors_of_text_files_add_is_read(read):
    line = json.dumps({"error_id": "p0", "error": "a\u2028b", "repair": "c"}, ensure_ascii=False)
    assert read("\ufeff" + line + "\r\n" + line) == read(line + "\n" + line)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"error_id": "p0"}\n{"error_id', "annotated line 2: not JSON"),
        ('[{"error_id": "p0"}', "annotated line 1: not JSON"),
        ('"p0"', "annotated row 0: str, not an object"),
        ('[{"data": {"error_id": "p0"}, "annotations": [{}]}]', "annotated row 0: not a task of Label Studio"),
        ('[{"data": "p0"}]', "annotated row 0: not a task of Label Studio"),
        pytest.param("[" * 100_000, "annotated line 1: not JSON ", id="nested lists"),
        pytest.param('{"error_id": "p0"}\n' + '{"a":' * 100_000, "annotated line 2: not JSON ", id="nested objects"),
    ],
)
def test_what_is_no_sheet_is_refused_with_its_place(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)


def test_half_of_a_surrogate_pair_names_no_error(read):
    half, pair = json.dumps("p\ud800"), json.dumps("\U0001d7d9")
    (item,) = read(f'{{"error_id": {half}, "error": {half}, "repair": {pair}}}')
    assert (item.error_id, item.error, item.texts) == (None, None, ["\U0001d7d9"])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.json: cannot be read"):
        list(read_annotated(tmp_path / "gone.json"))
