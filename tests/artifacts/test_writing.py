"""Full disks, limits and read-only places: told with the remedy, and gone on from to the same bytes."""

import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from stages.artifacts.columns import METRICS
from stages.artifacts.manifests import MANIFEST, PLAN
from stages.artifacts.stage import execute
from stages.artifacts.step import CHECKPOINTS, PROGRESS, Plan, Step
from stages.artifacts.store import parquet_files, write_rows
from stages.artifacts.writing import PARTIAL, writing
from stages.errors import ArtifactError, DataError, DifferenceFeedbackError
from stages.sections import TrackingSection
from stages.training.tracking import open_trackers

ROOT = Path(__file__).parents[2]
ROWS = [{"step": step, "metric": f"m{step * 7919 % 997}", "value": step / 7} for step in range(300)]
AGAIN = "then give the same command again: it goes on from what is whole"


class Work:
    """Two shards, a checkpoint and a model."""

    inputs = MappingProxyType({})

    def plan(self):
        return Plan("test", {}, 0, {})

    def run(self, step):
        for index in range(2):
            if not step.has_shard(METRICS, index):
                step.write_shards(index, {METRICS: ROWS})
        step.save_checkpoint(lambda folder: save_file({"w": torch.arange(3000)}, folder / "state.safetensors"))
        with writing(step.out / "model"):
            (step.out / "model").mkdir(exist_ok=True)
            save_file({"w": torch.arange(4000)}, step.out / "model" / "model.safetensors")
        step.finish()


def listing(folder):
    """Its files, without what tells the time, and the checksum over it."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    timed = rb'"device_seconds": \{[^}]*\}|"checksum": "\w+"'
    return {name: re.sub(timed, b"", content) for name, content in files.items()}


def fill_and_go_on(folder, expected, limited, reason):
    """Run with room for ever more pages, each time going on without a limit; gives what there was no room for."""
    stopped_at = set()
    for pages in range(12):
        out = folder / f"out-{pages}"
        try:
            with limited(pages * 4096):
                execute(Work(), out)
        except ArtifactError as error:
            told = str(error)
        else:
            told = None
        assert (told is None) == (out / MANIFEST).exists() == (Step.finished(out, Work().plan()) is not None)
        if told is not None:
            assert re.fullmatch(rf"{out}.*: cannot be written \({reason}\); .*, {AGAIN}", told)
            stopped_at.add(told.partition(":")[0].removeprefix(str(out)))
            assert execute(Work(), out).ran
        assert listing(out) == expected, pages
    return stopped_at


@contextmanager
def file_size_limit(bytes_):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def on_a_full_disk(folder):
    """`fill_and_go_on` on a file system of its own."""

    def room(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", folder], check=True)

    @contextmanager
    def full_disk(bytes_):
        disk = os.statvfs(folder)
        room((disk.f_blocks - disk.f_bfree) * disk.f_frsize + max(bytes_, disk.f_frsize))
        try:
            yield
        finally:
            room("100M")

    execute(Work(), folder / "whole")
    return fill_and_go_on(folder, listing(folder / "whole"), full_disk, "No space left on device")


NAMESPACE = ["unshare", "--map-root-user", "--mount"]
MOUNTED = 'mount -t tmpfs -o size=100M tmpfs "$1" && exec "$2" -c "$3" "$1"'


def has_mounts(folder):
    """Whether this user may mount file systems of its own."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", folder]
    return subprocess.run(command, capture_output=True).returncode == 0


def on_a_disk_of_its_own(folder, work):
    """The lines that a function of this module gives, called in a process that sees another file system there."""
    return call([*NAMESPACE, "sh", "-c", MOUNTED, "sh", folder, sys.executable], folder, work)


def call(python, folder, work):
    """The lines that a function of this module gives, called by this command with the folder."""
    code = f"import sys, test_writing as t; from pathlib import Path; print(*t.{work}(Path(sys.argv[1])), sep='\\n')"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    done = subprocess.run([*python, code, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_files_that_may_not_grow_are_told_and_written_when_they_may(tmp_path):
    execute(Work(), tmp_path / "whole")
    stops = fill_and_go_on(tmp_path, listing(tmp_path / "whole"), file_size_limit, "File too large")
    assert stops == {"", "/metrics-00000.parquet.pending", "/checkpoints/000000", "/model"}


def test_a_full_disk_is_told_and_written_to_when_there_is_room(tmp_path):
    if not has_mounts(tmp_path):  # a device that is always full has to do
        shards_on_a_full_device(tmp_path)
        return
    stops = set(on_a_disk_of_its_own(tmp_path, "on_a_full_disk"))
    assert stops >= {f"/{PLAN}", "/metrics-00000.parquet.pending", "/metrics-00001.parquet.pending"}
    assert stops & {"/checkpoints/000000", "/model"}


def shards_on_a_full_device(folder):
    execute(Work(), folder / "whole")
    out = folder / "out"
    Step.open(out, Work().plan())
    device = out / f"metrics-00000.parquet.pending{PARTIAL}"
    device.symlink_to("/dev/full")
    message = (
        rf"out/metrics-00000\.parquet\.pending: cannot be written \(No space left on device\); make room .*, {AGAIN}"
    )
    with pytest.raises(ArtifactError, match=message):
        execute(Work(), out)
    device.unlink()
    assert execute(Work(), out).ran
    assert listing(out) == listing(folder / "whole")


def test_a_device_that_is_full_is_told(tmp_path):
    shards_on_a_full_device(tmp_path)


def on_a_read_only_disk(folder):
    """What is told of a new and of a stopped output there, and whether a complete one is found."""
    execute(Work(), folder / "complete")
    Step.open(folder / "stopped", Work().plan())
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    told = []
    for name in ("new", "stopped"):
        with pytest.raises(ArtifactError) as caught:
            execute(Work(), folder / name)
        told.append(str(caught.value))
    return *told, execute(Work(), folder / "complete").ran


@pytest.mark.slow
def test_a_read_only_place_is_told_and_a_complete_output_is_found_there(tmp_path):
    below_a_file = tmp_path / "file" / "out"
    below_a_file.parent.write_text("")
    with pytest.raises(ArtifactError) as caught:
        execute(Work(), below_a_file)
    remedy = f"make it writable, or give another --out, {AGAIN}"
    assert str(caught.value) == f"{below_a_file}: cannot be written (Not a directory); {remedy}"
    if has_mounts(tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        told = [f"{disk / name}: cannot be written (Read-only file system); {remedy}" for name in ("new", "stopped")]
        assert on_a_disk_of_its_own(disk, "on_a_read_only_disk") == [*told, "False"]


class Shut(Work):
    """Its folder is made read-only behind the first shard."""

    def run(self, step):
        step.write_shards(0, {METRICS: ROWS})
        step.out.chmod(0o555)
        super().run(step)


class ShutWithinAFile(Work):
    """The same in the midst of a shard, and then a row is bad."""

    def run(self, step):
        step.stream_shard(0, METRICS, self.tables(step.out))

    def tables(self, out):
        schema = METRICS.schema()
        yield pa.Table.from_pylist(ROWS, schema=schema)
        out.chmod(0o555)
        yield pa.Table.from_pylist([ROWS[0] | {"metric": None}], schema=schema)


def in_folders_that_are_shut(folder):
    """What is told, and gone on from when they are open again."""
    execute(Work(), folder / "whole")
    told = []
    for work in (Shut, ShutWithinAFile):
        out = folder / work.__name__
        with pytest.raises(DifferenceFeedbackError) as caught:
            execute(work(), out)
        told.append(str(caught.value))
        out.chmod(0o755)
        assert execute(Work(), out).ran
        assert listing(out) == listing(folder / "whole")
    return told


@pytest.mark.slow
def test_a_folder_that_becomes_read_only_meanwhile_is_told(tmp_path):
    drop = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []
    shut, within = call([*drop, sys.executable, "-c"], tmp_path, "in_folders_that_are_shut")
    assert shut == (
        f"{tmp_path}/Shut/metrics-00001.parquet.pending: cannot be written (Permission denied); make it writable, or "
        f"give another --out, {AGAIN}"
    )
    assert within.startswith(f"{tmp_path}/ShutWithinAFile/metrics-00000.parquet.pending row 300: metric is null")


def test_a_trackers_file_that_may_not_grow_is_told(tmp_path):
    """Each line is on the disk when it is logged, and what could not be written is tried once more at the end."""

    def track():
        with file_size_limit(300), open_trackers(TrackingSection(trackers=["jsonl"]), tmp_path, {}) as trackers:
            for step in range(100):
                trackers.log(step, {"loss": 0.5})

    with pytest.raises(ArtifactError, match=rf"^{tmp_path}/tracking: cannot be written \(File too large\); raise .*"):
        track()


def test_what_reading_and_others_code_raise_is_left_alone(tmp_path):
    """Only what is done to the output's files is told as their error."""

    class Theirs(Work):
        def run(self, step):
            step.stream_shard(0, METRICS, self.tables())

        def tables(self):
            raise OSError(28, "of a reward's own cache")
            yield

    with pytest.raises(OSError, match="of a reward's own cache"):
        execute(Theirs(), tmp_path / "out")
    (tmp_path / "metrics.parquet").mkdir()
    with pytest.raises(DataError, match="metrics"):
        parquet_files(tmp_path / "metrics.parquet", METRICS)


def test_a_file_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """A machine that loses its power must not keep the name of an empty file."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda old, new: (calls.append(str(new)), replace(old, new)))
    write_rows(tmp_path / "metrics.parquet", METRICS, ROWS)
    step = Step.open(tmp_path / "out", Work().plan())
    step.save_checkpoint(lambda folder: (folder / "state.json").write_text("{}"))
    table, plan, progress = (str(tmp_path / name) for name in ("metrics.parquet", f"out/{PLAN}", f"out/{PROGRESS}"))
    state = str(tmp_path / "out" / CHECKPOINTS / "000000" / "state.json")
    assert calls == [table + PARTIAL, table, plan + PARTIAL, plan, state, progress + PARTIAL, progress]


def test_an_error_that_the_system_has_no_number_for_is_told_in_its_words(tmp_path):
    with (
        pytest.raises(ArtifactError, match=r"out: cannot be written \(odd\); see to its file system"),
        writing(tmp_path / "out"),
    ):
        raise OSError("odd")
