"""The sheet that an annotator fills in: tasks for Label Studio, the same as plain JSON lines, and how both come back.

Formats: labelstud.io/guide/predictions (tasks with a prefilled text area), labelstud.io/guide/task_format (exports).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from stages.artifacts.problems import encode_image, open_image
from stages.errors import DataError

Json = dict[str, Any]

PLAIN, CONFIG = "sheet.jsonl", "label_config.xml"
IMPORT_BYTES = 100 * 2**20
"""A tasks file is no larger than this unless one task is; Label Studio takes 200 MB at once."""
REPAIR = "repair"
"""Name of the text area, and of the plain sheet's field."""
_BROWSER_FORMATS = {"PNG", "JPEG", "GIF", "WEBP", "BMP"}
_IMAGES_TAG = '<Image name="images" valueList="$images" zoom="true"/>'
_HALF = re.compile("[\ud800-\udfff]")
_CONFIG = """<View>
  <Style>.htx-text { white-space: pre-wrap; }</Style>
  <Header value="$question"/>
  {images}
  <Header value="Reference answer" size="5"/>
  <Header value="$answer" size="5"/>
  <Header value="Wrong response" size="5"/>
  <Text name="error" value="$error" valueType="text"/>
  <Header value="The same response, repaired with as few edits as make it right" size="5"/>
  <TextArea name="repair" toName="error" rows="8" maxSubmissions="1" editable="true" required="true"/>
</View>
"""


@dataclass(frozen=True)
class Annotated:
    """What came back for one error; fields that are missing there are None."""

    place: str
    """Where it stands, in words: `task 57` of Label Studio, else `row 3`, counted from 0."""
    error_id: str | None
    error: str | None
    texts: list[Any] | None
    """What is in the repair's text area; None where nobody annotated or the annotator skipped it."""
    skipped: bool
    superseded: int
    """Earlier annotations of the same task, of which the last one that was not cancelled counts."""


def write_sheet(folder: Path, errors: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of `errors` as `tasks-00.json` and so on with `label_config.xml`, and as `sheet.jsonl`.

    Both hold one error a line, its images embedded as data URIs, the repair prefilled with the error.
    """
    (folder / CONFIG).write_text(
        _CONFIG.replace("{images}", _IMAGES_TAG if any(map(_pictures, errors)) else ""), encoding="utf-8"
    )
    tasks: list[str] = []
    files = size = 0
    with (folder / PLAIN).open("w", encoding="utf-8") as plain:
        for row in errors:
            data = _data(row)
            plain.write(_line(data | {REPAIR: data["error"]}) + "\n")
            task = _line(_task(data))
            if tasks and size + len(task.encode()) > IMPORT_BYTES:
                _write_tasks(folder, files, tasks)
                tasks, files, size = [], files + 1, 0
            tasks.append(task)
            size += len(task.encode())
    _write_tasks(folder, files, tasks)


def _write_tasks(folder: Path, number: int, tasks: Sequence[str]) -> None:
    (folder / f"tasks-{number:02d}.json").write_text("[\n" + ",\n".join(tasks) + "\n]\n", encoding="utf-8")


def _data(row: Mapping[str, Any]) -> Json:
    names = ("error_id", "problem_id", "question", "answer", "error")
    return {name: row[name] for name in names} | {"images": [_data_uri(image) for image in _pictures(row)]}


def _pictures(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The problem's images, then the frames of its video."""
    return [*row["images"], *(row["video"] or [])]


def _task(data: Json) -> Json:
    """A task whose text area holds the error; the `Image` tag wants a picture where a problem has none."""
    prefilled = {
        "id": REPAIR,
        "from_name": REPAIR,
        "to_name": "error",
        "type": "textarea",
        "value": {"text": [data["error"]]},
    }
    images = data["images"] or [_data_uri(encode_image(Image.new("RGB", (1, 1), "white")))]
    return {
        "data": data | {"images": images},
        "predictions": [{"model_version": "policy", "result": [prefilled]}],
    }


def _data_uri(image: Mapping[str, Any]) -> str:
    """The image as it is where browsers show its format, else as a PNG."""
    content = image["bytes"]
    with open_image(content) as opened:
        name = str(opened.format)
        if name not in _BROWSER_FORMATS:
            name, content = "PNG", encode_image(opened.convert("RGB"))["bytes"]
    return f"data:{Image.MIME[name]};base64,{base64.b64encode(content).decode()}"


def _line(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_annotated(path: Path) -> Iterator[Annotated]:
    """What annotators made of a sheet: an export of Label Studio (JSON or JSON-MIN), or the plain sheet filled in.

    JSON-MIN has a row for each annotation, and leaves out those that were cancelled.

    Raises:
        DataError: the file cannot be read as either.
    """
    for row, item in enumerate(_items(path)):
        place = f"task {item['id']}" if isinstance(item.get("id"), int) else f"row {row}"
        if "data" in item:
            yield _from_export(item, path, place)
        else:
            text = item.get(REPAIR)
            texts = text if isinstance(text, list | None) else [text]
            yield Annotated(place, *_named(item), texts, skipped=False, superseded=0)


def _from_export(task: Json, path: Path, place: str) -> Annotated:
    try:
        data, annotations = task["data"], task.get("annotations") or []
        done = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
        done.sort(key=lambda annotation: annotation.get("updated_at") or "")
        texts = _texts(done[-1]) if done else None
        named = _named(data)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{path} {place}: not a task of Label Studio ({error!r}); export it again as JSON") from error
    return Annotated(place, *named, texts, skipped=bool(annotations) and not done, superseded=max(len(done) - 1, 0))


def _named(data: Json) -> tuple[str | None, str | None]:
    """Which error it is, and its text."""
    error_id, error = (value if is_unicode(value := data.get(name)) else None for name in ("error_id", "error"))
    return error_id, error


def is_unicode(value: Any) -> bool:
    """Whether it is a text, and has no half of a surrogate pair: JSON can write one, UTF-8 cannot."""
    return isinstance(value, str) and not _HALF.search(value)


def _texts(annotation: Json) -> list[Any]:
    found = [result["value"]["text"] for result in annotation["result"] if result["from_name"] == REPAIR]
    return [text for texts in found for text in (texts if isinstance(texts, list) else [texts])]


def _items(path: Path) -> list[Json]:
    """The objects of a JSON list, or of JSON lines."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); give the annotated sheet as UTF-8") from error
    whole = text.lstrip().startswith("[")
    pieces = [(1, text)] if whole else [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    items: list[Any] = []
    for first_line, piece in pieces:
        try:
            value = json.loads(piece)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path} line {first_line}: not JSON ({error}); give an export of Label Studio, or one object a line"
            ) from error
        items += value if whole else [value]
    for row, item in enumerate(items):
        if not isinstance(item, dict):
            raise DataError(f"{path} row {row}: {type(item).__name__}, not an object; give an export of Label Studio")
    return items
