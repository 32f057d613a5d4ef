"""Full disks, limits and read-only places: told with the remedy, and gone on from to the same bytes."""

import os
import re
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import save_file

from stages.artifacts.columns import METRICS
from stages.artifacts.fingerprint import MANIFEST
from stages.artifacts.manifest import PLAN
from stages.artifacts.stage import execute
from stages.artifacts.step import CHECKPOINTS, PROGRESS, Plan, Step
from stages.artifacts.store import parquet_files, write_rows
from stages.artifacts.writing import PARTIAL, writing
from stages.errors import ArtifactError, DataError

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
    """Its files, without what tells the time."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {name: re.sub(rb'"device_seconds": \{[^}]*\}', b"", content) for name, content in files.items()}


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
    """What a function of this module gives, as words, called in a process that sees another file system there."""
    code = f"import sys, test_writing; from pathlib import Path; print(*test_writing.{work}(Path(sys.argv[1])))"
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}
    command = [*NAMESPACE, "sh", "-c", MOUNTED, "sh", folder, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


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
        assert " ".join(on_a_disk_of_its_own(disk, "on_a_read_only_disk")) == " ".join([*told, "False"])


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
