"""The schemas as they are on disk, frozen by hand, and what a wrong file is told."""

import io
from typing import Literal, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.artifacts import columns
from stages.artifacts.columns import DRAFTS, GROUPS, PROBLEMS, REPAIR_SET, ROLLOUTS, SCORES, TABLES, TableSpec
from stages.artifacts.problems import encode_image
from stages.artifacts.store import iterate_rows, write_rows
from stages.errors import DataError

IMAGES = "list<element: struct<bytes: binary, path: string>>"
IDS, FLOATS, MASK = "list<element: int32>", "list<element: float>", "list<element: bool>"
PROBLEM = [
    ("problem_id", "string"),
    ("question", "string"),
    ("images", IMAGES),
    ("answer", "string"),
    ("kind", "string"),
    ("video", IMAGES),
    ("fps", "double"),
    ("choices", "list<element: string>"),
    ("preferred", "string"),
]
FROZEN = {
    "problems": PROBLEM,
    "errors": [("error_id", "string"), *PROBLEM, ("error", "string")],
    "repair_set": [*PROBLEM, ("error", "string"), ("repair", "string")],
    "preferences": [*PROBLEM[:-1], ("chosen", "string"), ("rejected", "string")],
    "rollouts": [
        ("problem_id", "string"),
        ("sample", "int32"),
        ("ids", IDS),
        ("sampler_logprobs", FLOATS),
        ("finish_reason", "string"),
        ("reward", "float"),
        ("text", "string"),
    ],
    "repairs": [
        ("problem_id", "string"),
        ("sample", "int32"),
        ("candidate", "int32"),
        ("ids", IDS),
        ("text", "string"),
        ("reward", "float"),
        ("cost", "float"),
        ("flagged", "bool"),
        ("category", "string"),
        ("evidence", "string"),
        ("selection", "string"),
    ],
    "groups": [
        ("problem_id", "string"),
        ("sample", "int32"),
        ("role", "string"),
        ("in_pair", "bool"),
        ("ids", IDS),
        ("reward", "float"),
        ("mask", MASK),
        ("old_logprobs", FLOATS),
        ("finish_reason", "string"),
        ("sampler_logprobs", FLOATS),
        ("entropies", FLOATS),
        ("image_kls", FLOATS),
        ("answer_gaps", FLOATS),
    ],
    "drafts": [
        ("problem_id", "string"),
        ("sample", "int32"),
        ("ids", IDS),
        ("text", "string"),
        ("right_response", "string"),
        ("right_texts", "list<element: string>"),
    ],
    "episodes": [
        ("iteration", "int32"),
        ("problem_id", "string"),
        ("sample", "int32"),
        ("attempt", "int32"),
        ("error", "string"),
        ("text", "string"),
        ("reward", "float"),
        ("cost", "float"),
        ("gate_c1", "bool"),
        ("gate_audit", "bool"),
        ("category", "string"),
        ("evidence", "string"),
        ("repair_reward", "float"),
    ],
    "dropped": [("problem_id", "string"), ("reason", "string"), ("detail", "string")],
    "values": [("problem_id", "string"), ("sample", "int32"), ("values", FLOATS)],
    "old_logprobs": [("problem_id", "string"), ("sample", "int32"), ("role", "string"), ("old_logprobs", FLOATS)],
    "metrics": [("step", "int32"), ("metric", "string"), ("value", "double")],
    "samples": [
        ("problem_id", "string"),
        ("attempt", "int32"),
        ("answer", "string"),
        ("error", "string"),
        ("text", "string"),
        ("reward", "float"),
        ("cost", "float"),
        ("flagged", "bool"),
        ("category", "string"),
    ],
    "scores": [
        ("problem_id", "string"),
        ("kind", "string"),
        ("mode", "string"),
        ("draw", "int32"),
        ("text", "string"),
        ("reward", "float"),
    ],
    "summary": [
        ("section", "string"),
        ("measure", "string"),
        ("value", "double"),
        ("low", "double"),
        ("high", "double"),
        ("n", "int64"),
    ],
    "curves": [
        ("key", "string"),
        ("study", "string"),
        ("variant", "string"),
        ("seed", "int32"),
        ("problems", "string"),
        ("learning_rate", "double"),
        ("budget", "double"),
        ("round", "double"),
        ("device_seconds", "double"),
        ("rollouts", "double"),
        ("measure", "string"),
        ("values", FLOATS),
    ],
    "ablation": [
        ("variant", "string"),
        ("seed", "int32"),
        ("measure", "string"),
        ("value", "double"),
        ("low", "double"),
        ("high", "double"),
        ("n", "int64"),
        ("note", "string"),
    ],
    "audit_sample": [("episode_id", "string"), ("stratum", "string"), ("population", "int64"), ("drawn", "int64")],
    "audit_labels": [
        ("episode_id", "string"),
        ("label", "string"),
        ("question", "string"),
        ("answer", "string"),
        ("error", "string"),
        ("repair", "string"),
        ("difference", "string"),
    ],
    "audit_agreement": [
        ("section", "string"),
        ("estimate", "string"),
        ("measure", "string"),
        ("value", "double"),
        ("low", "double"),
        ("high", "double"),
        ("n", "int64"),
        ("note", "string"),
    ],
}
NULLABLE = {
    "problems": {"kind", "video", "fps", "choices", "preferred"},
    "errors": {"kind", "video", "fps", "choices", "preferred"},
    "repair_set": {"kind", "video", "fps", "choices", "preferred"},
    "preferences": {"kind", "video", "fps", "choices"},
    "rollouts": {"reward"},
    "repairs": {"reward", "flagged", "category", "evidence"},
    "groups": {"sampler_logprobs", "entropies", "image_kls", "answer_gaps"},
    "drafts": {"right_response", "right_texts"},
    "episodes": {"reward", "gate_c1", "gate_audit", "category", "evidence", "repair_reward"},
    "dropped": {"detail"},
    "values": set(),
    "old_logprobs": set(),
    "metrics": set(),
    "samples": {"reward", "flagged", "category"},
    "scores": {"kind", "reward"},
    "summary": {"low", "high", "n"},
    "curves": {"study", "learning_rate", "budget"},
    "ablation": {"seed", "low", "high", "n", "note"},
    "audit_sample": set(),
    "audit_labels": {"label", "question", "answer", "error", "repair", "difference"},
    "audit_agreement": {"value", "low", "high", "note"},
}


def problem(problem_id="p0", **changes):
    image = encode_image(Image.new("RGB", (4, 2), (200, 10, 10)))
    return {"problem_id": problem_id, "question": "Sum?", "images": [image], "answer": "7", "kind": None} | changes


def test_every_table_is_frozen():
    assert {spec.name for spec in TABLES} == FROZEN.keys()


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_columns_on_disk_are_the_frozen_ones(spec, tmp_path):
    write_rows(tmp_path / "empty.parquet", spec, [])
    schema = pq.read_schema(tmp_path / "empty.parquet")

    assert [(field.name, str(field.type)) for field in schema] == FROZEN[spec.name]
    assert {column.name for column in spec.columns if column.null} == NULLABLE[spec.name]


@pytest.mark.parametrize("spec", TABLES, ids=lambda spec: spec.name)
def test_every_table_and_column_is_described(spec):
    assert spec.producer
    assert spec.consumers
    assert all(column.meaning for column in spec.columns)


def test_missing_column_is_named_with_what_is_there_and_who_writes_it():
    schema = pa.schema([field for field in ROLLOUTS.schema() if field.name != "ids"])
    with pytest.raises(DataError, match=r"x\.parquet: no column ids .*it has problem_id, sample, .* by df rollout"):
        ROLLOUTS.check_schema(schema, "x.parquet")


def test_optional_columns_may_be_missing_and_are_null_then(tmp_path):
    video = ["video", "fps"]
    of_problems = ["kind", *video, "choices", "preferred"]
    optional = {"problems": of_problems, "errors": of_problems, "repair_set": of_problems}
    optional |= {"preferences": ["kind", *video, "choices"]}
    optional |= {
        "groups": ["sampler_logprobs", "entropies", "image_kls", "answer_gaps"],
        "repairs": ["evidence"],
        "episodes": ["evidence"],
        "dropped": ["detail"],
        "drafts": ["right_texts"],
        "samples": ["flagged", "category"],
        "curves": ["study"],
    }
    optional |= {"audit_labels": ["question", "answer", "error", "repair", "difference"]}
    assert {spec.name: [c.name for c in spec.columns if c.optional] for spec in TABLES} == {
        spec.name: optional.get(spec.name, []) for spec in TABLES
    }
    schema = pa.schema([field for field in PROBLEMS.schema() if field.name not in optional["problems"]])
    file = tmp_path / "problems.parquet"
    pq.write_table(pa.Table.from_pylist([problem("p0"), problem("p1")], schema=schema), file)
    absent = dict.fromkeys(optional["problems"])
    assert list(iterate_rows(file, PROBLEMS)) == [problem(name, **absent) for name in ("p0", "p1")]


@pytest.mark.parametrize(
    ("name", "written"), [("kind", "kinds"), ("kind", "kijd"), ("preferred", "prefered"), ("fps", "fpr")]
)
def test_an_optional_column_that_is_misspelt_is_told(name, written):
    schema = PROBLEMS.schema()
    schema = schema.set(schema.get_field_index(name), schema.field(name).with_name(written))
    with pytest.raises(DataError, match=f"^x: no column {name}, but {written}; rename that"):
        PROBLEMS.check_schema(schema, "x")
    PROBLEMS.check_schema(PROBLEMS.schema().append(pa.field(written, pa.string())), "x")  # beside it, of no concern


def test_an_optional_column_may_not_be_of_another_type():
    schema = PROBLEMS.schema()
    place = schema.get_field_index("preferred")
    with pytest.raises(DataError, match=r"column preferred is int64, not string"):
        PROBLEMS.check_schema(schema.set(place, pa.field("preferred", pa.int64())), "x.parquet")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("problem_id", pa.int64()),
        ("images", pa.list_(pa.binary())),
        ("video", pa.list_(pa.binary())),
        ("fps", pa.string()),
        ("images", pa.list_(pa.struct([("bytes", pa.string()), ("path", pa.string())]))),
        ("images", pa.list_(pa.struct([("bytes", pa.binary())]))),
    ],
)
def test_wrong_type_is_named_with_the_right_one(name, wrong):
    schema = PROBLEMS.schema()
    schema = schema.set(schema.get_field_index(name), pa.field(name, wrong))
    with pytest.raises(DataError, match=rf"x\.parquet: column {name} is .*, not .*; cast it"):
        PROBLEMS.check_schema(schema, "x.parquet")


def test_large_variants_and_further_columns_pass():
    image = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string()), ("width", pa.int32())])
    types = {"images": pa.large_list(image), "video": pa.large_list(image), "fps": pa.float64()}
    types |= {"choices": pa.large_list(pa.large_string())}
    fields = [(name, types.get(name, pa.large_string())) for name in PROBLEMS.schema().names]

    PROBLEMS.check_schema(pa.schema([*fields, ("source", pa.string())]), "x.parquet")


TYPED = {
    getattr(columns, name): get_args(hint)[0]
    for name, hint in get_type_hints(columns).items()
    if get_origin(hint) is TableSpec and is_typeddict(get_args(hint)[0])
}
PYTHON = {
    pa.string(): str,
    pa.int32(): int,
    pa.int64(): int,
    pa.float32(): float,
    pa.float64(): float,
    pa.bool_(): bool,
}


def python_type(column):
    kind = list[PYTHON[column.type.value_type]] if pa.types.is_list(column.type) else PYTHON[column.type]
    kind = kind if column.null is None else kind | None
    return NotRequired[kind] if column.optional else kind


def plain(hint):
    """A choice of texts as the text that it is in a file."""
    return str if get_origin(hint) is Literal else hint


@pytest.mark.parametrize("spec", TYPED, ids=lambda spec: spec.name)
def test_a_row_s_type_is_that_of_its_columns(spec):
    hints = get_type_hints(TYPED[spec], include_extras=True)
    assert {name: plain(hint) for name, hint in hints.items()} == {c.name: python_type(c) for c in spec.columns}


def test_the_rows_that_stages_hand_each_other_have_types():
    assert {ROLLOUTS, GROUPS, DRAFTS, SCORES} <= TYPED.keys()


def test_null_without_meaning_is_refused_with_its_row():
    rows = [problem("p0"), problem("p1", answer=None)]
    table = pa.Table.from_pylist(rows, schema=PROBLEMS.schema())
    with pytest.raises(DataError, match=r"x\.parquet row 11: answer is null; give it a value or drop the row"):
        PROBLEMS.check_nulls(table, "x.parquet", first_row=10)


def test_null_inside_a_list_is_refused_with_its_row():
    floats = pa.list_(pa.float32())
    lists = pa.chunked_array([pa.array([[1.0], []], floats), pa.array([[1.0, None]], floats)])
    table = pa.table({"sampler_logprobs": lists})
    with pytest.raises(DataError, match="row 2: sampler_logprobs is null"):
        ROLLOUTS.check_nulls(table, "x.parquet")


def test_null_with_a_meaning_passes(tmp_path):
    row = {"problem_id": "p", "kind": None, "mode": "greedy", "draw": 0, "text": "", "reward": None}
    write_rows(tmp_path / "scores.parquet", SCORES, [row])

    assert pq.read_table(tmp_path / "scores.parquet").to_pylist() == [row]


@pytest.mark.parametrize("spec", [PROBLEMS, REPAIR_SET], ids=lambda spec: spec.name)
def test_datasets_shows_the_images(spec, tmp_path):
    file = tmp_path / "problems.parquet"
    frames = problem()["images"] * 3
    write_rows(
        file,
        spec,
        [
            problem(error="6", repair="7"),
            problem("p1", images=[], video=frames, fps=4.0, choices=["1", "7"], error="6", repair="7"),
        ],
    )

    loaded = datasets.load_dataset("parquet", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))

    assert [len(images) for images in loaded["images"]] == [1, 0]
    shown = loaded[0]["images"][0]
    assert isinstance(shown, Image.Image)
    assert shown.size == (4, 2)
    assert shown.getpixel((0, 0)) == (200, 10, 10)
    assert loaded["video"][0] is None
    assert [frame.size for frame in loaded[1]["video"]] == [(4, 2)] * 3
    assert loaded["fps"] == [None, 4.0]
    assert loaded["choices"] == [None, ["1", "7"]]


def test_encoded_image_is_a_png():
    assert Image.open(io.BytesIO(problem()["images"][0]["bytes"])).format == "PNG"
