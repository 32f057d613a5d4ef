"""What a finished step's files have become since: named before anything is made of them."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from stages.artifacts.columns import DROPPED, METRICS
from stages.artifacts.manifests import MANIFEST, PLAN, model_folder, read_manifest
from stages.artifacts.stage import execute, planned
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import write_rows
from stages.errors import ArtifactError, DataError

ROWS = [{"step": step, "metric": "loss", "value": step / 2} for step in range(300)]
SHARD = "metrics-00001.parquet"
WEIGHTS = "model/model.safetensors"


class Source:
    """Two shards, a table and a model's weights."""

    def __init__(self, **inputs):
        self.inputs = inputs

    def plan(self):
        return Plan("source", {}, 0, self.inputs)

    def run(self, step):
        for index in range(2):
            step.write_shards(index, {METRICS: ROWS})
        step.write_table(DROPPED, [{"problem_id": "p", "reason": "r"}])
        (step.out / "model").mkdir()
        (step.out / WEIGHTS).write_bytes(bytes(1 << 16))
        step.finish()


@pytest.fixture
def source(tmp_path):
    execute(Source(), tmp_path / "source")
    return tmp_path / "source"


def reads(path):
    """A step that has the path as its input."""
    return Source(source=path)


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


DAMAGES = {
    "missing": (lambda file: file.unlink(), "missing"),
    "cut": (lambda file: file.write_bytes(file.read_bytes()[:-100]), r"\d+ bytes instead of \d+"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"\0"), r"\d+ bytes instead of \d+"),
    "emptied": (lambda file: file.write_bytes(b""), r"0 bytes instead of \d+"),
    "first bit": (lambda file: flip(file, 0), "changed since it was written"),
    "page": (lambda file: flip(file, 200, 3), "changed since it was written"),
    "footer": (lambda file: flip(file, -60, 6), "changed since it was written"),
    "last bit": (lambda file: flip(file, -1, 7), "changed since it was written"),
}


@pytest.mark.parametrize("name", [SHARD, WEIGHTS])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_by_who_reads_it_and_by_who_wrote_it(damage, name, source, tmp_path):
    spoil, wrong = DAMAGES[damage]
    spoil(source / name)
    message = rf"^{re.escape(str(source / name))}: {wrong}; run the command that made it again with --overwrite$"
    with pytest.raises(ArtifactError, match=message):
        execute(reads(source), tmp_path / "out")
    with pytest.raises(ArtifactError, match=message):
        execute(reads(source), tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArtifactError, match=message):
        execute(Source(), source)

    assert execute(Source(), source, overwrite=True).ran  # the remedy
    assert execute(reads(source), tmp_path / "out").ran


def test_every_flipped_bit_of_a_shard_is_noticed(source):
    content = (source / SHARD).read_bytes()
    for place in range(0, len(content), 17):
        flip(source / SHARD, place, place % 8)
        with pytest.raises(ArtifactError, match="changed since it was written"):
            planned(reads(source))
        (source / SHARD).write_bytes(content)
    planned(reads(source))


def test_a_stage_reads_nothing_that_is_damaged(source, tmp_path):
    """Some flipped bits of a footer have pyarrow read for ever."""

    class Reader(Source):
        def plan(self):
            pytest.fail("the damaged file would be read")

    flip(source / SHARD, -60)
    with pytest.raises(ArtifactError, match="changed since it was written"):
        execute(Reader(source=source), tmp_path / "out")


def test_several_damaged_files_are_counted(source):
    (source / SHARD).unlink()
    (source / WEIGHTS).write_bytes(b"")
    with pytest.raises(ArtifactError, match=rf"{SHARD}: missing \(and 1 more of its files\); "):
        planned(reads(source))


@pytest.mark.parametrize(("part", "file"), [("model", WEIGHTS), (SHARD, SHARD)])
def test_a_part_of_a_step_is_read_for_itself(part, file, source):
    """A model folder or a shard may be given in place of the step."""
    (source / "dropped.parquet").unlink()
    planned(reads(source / part))
    flip(source / file, 100)
    with pytest.raises(ArtifactError, match=f"{file}: changed since it was written"):
        planned(reads(source / part))


@pytest.mark.parametrize("name", ["metrics-00002.parquet", "model/model-00002-of-00002.safetensors"])
def test_a_file_that_would_be_read_but_is_not_the_steps_is_named(name, source):
    (source / "notes.txt").write_text("mine")
    planned(reads(source))
    (source / name).write_bytes((source / SHARD).read_bytes())
    with pytest.raises(ArtifactError, match=rf"{name}: not in manifest\.json, but it would be read; move it elsewhere"):
        planned(reads(source))


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "step": "so', b"\xff\xfe\x00"])
@pytest.mark.parametrize("name", [MANIFEST, PLAN])
def test_a_manifest_or_plan_that_is_not_json_is_named(name, content, source, tmp_path):
    (source / name).write_bytes(content)
    message = rf"source/{name}: not JSON \(.*\); if df made {source}, delete it and run its command again"
    for stage, out in ((reads(source), tmp_path / "out"), (Source(), source)):
        with pytest.raises(ArtifactError, match=message):
            execute(stage, out)
    with pytest.raises(ArtifactError, match=message):
        model_folder(source)


@pytest.mark.parametrize("manifest", [[], {}, {"schema_version": "2"}, {"schema_version": True, "files": {}}])
def test_a_manifest_of_something_else_is_named(manifest, source):
    (source / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"source/manifest\.json: not a step's; run the command that made it again"):
        planned(reads(source))


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "source: schema version 1, this is 2; run its command again with --overwrite"),
        (3, "source: schema version 3, this is 2; update df, or run its command again with --overwrite"),
    ],
)
def test_a_step_of_another_schema_version_is_named(version, message, source, tmp_path):
    for name in (MANIFEST, PLAN):
        (source / name).write_text(json.dumps(json.loads((source / name).read_text()) | {"schema_version": version}))
    with pytest.raises(ArtifactError, match=f"{message}$"):
        execute(reads(source), tmp_path / "out")
    with pytest.raises(ArtifactError, match="source: made with other schema_version; give --overwrite"):
        execute(Source(), source)
    assert execute(Source(), source, overwrite=True).ran
    assert read_manifest(source)["schema_version"] == 2


def test_every_flipped_bit_of_a_manifest_is_noticed(source):
    content = (source / MANIFEST).read_bytes()
    for place in range(0, len(content), 5):
        for bit in range(8):
            flip(source / MANIFEST, place, bit)
            assert same_json(content, (source / MANIFEST).read_bytes()) or is_refused(source)
            (source / MANIFEST).write_bytes(content)
    planned(reads(source))


def same_json(before, after):
    """White space and the case of some letters say the same."""
    try:
        return json.loads(before) == json.loads(after)
    except ValueError:
        return False


def is_refused(source):
    with pytest.raises(ArtifactError, match=r"manifest\.json: (changed since|not JSON|not a step's)|schema version"):
        planned(reads(source))
    return True


@pytest.mark.parametrize("plan", [None, "{}", "[]"])
def test_a_step_whose_plan_is_lost_is_still_what_its_manifest_says(plan, source):
    (source / PLAN).unlink()
    if plan is not None:
        (source / PLAN).write_text(plan)
    planned(reads(source))
    (source / SHARD).unlink()
    with pytest.raises(ArtifactError, match=rf"{SHARD}: missing; run the command that made it again"):
        planned(reads(source))


def test_a_folder_with_a_manifest_of_somebody_elses_is_an_input_like_others(tmp_path):
    write_rows(tmp_path / "metrics-00000.parquet", METRICS, ROWS)
    (tmp_path / MANIFEST).write_text('{"files": ["metrics-00000.parquet"]}')
    assert planned(reads(tmp_path)).record()["inputs"]["source"]["path"] == str(tmp_path)


def test_a_file_that_may_not_be_read_is_not_to_be_made_again(source):
    """The run that made it took days."""
    (source / SHARD).unlink()
    (source / SHARD).symlink_to(SHARD)  # the system refuses to read it, whoever asks
    with pytest.raises(ArtifactError) as caught:
        planned(reads(source))
    assert str(caught.value).startswith(f"{source / SHARD}: cannot be read (")
    assert str(caught.value).endswith("); make it readable, or give a copy that is")


def test_who_may_read_the_plan_may_read_the_weights(tmp_path):
    """safetensors are written for their owner alone."""

    class Saves(Source):
        def run(self, step):
            (step.out / "model").mkdir()
            save_file({"w": torch.zeros(2)}, step.out / WEIGHTS)
            step.finish()

    execute(Saves(), tmp_path / "out")
    modes = {(tmp_path / "out" / name).stat().st_mode for name in (PLAN, MANIFEST, WEIGHTS)}
    assert len(modes) == 1


@pytest.mark.parametrize("damage", ["cut", "emptied", "page", "footer"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_flat_parquet_is_read_before_anything_is_made_of_it(damage, in_folder, tmp_path):
    """It has no manifest; our files have checksums of their pages."""
    (tmp_path / "flat").mkdir()
    file = tmp_path / "flat" / "metrics-00000.parquet"
    write_rows(file, METRICS, ROWS)
    stage = reads(tmp_path / "flat" if in_folder else file)
    planned(stage)
    DAMAGES[damage][0](file)
    with pytest.raises(DataError, match=rf"{file}: not a readable Parquet file \(.*\); write it again"):
        execute(stage, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_step_that_is_not_complete_is_no_input(source):
    stopped = Step.open(source.parent / "stopped", reads(source).plan())
    stopped.write_shards(0, {METRICS: ROWS})
    with pytest.raises(ArtifactError, match=r"stopped: no manifest\.json, so this step is not complete"):
        planned(reads(stopped.out))


def test_a_stopped_steps_files_are_not_looked_at(source):
    """Half of them may be there."""
    step = Step.open(source.parent / "stopped", reads(source).plan())
    step.write_shards(0, {METRICS: ROWS})
    flip(step.out / "metrics-00000.parquet", 200)
    assert Step.finished(step.out, reads(source).plan()) is None
