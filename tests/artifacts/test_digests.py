"""A file is hashed once, in a process and in a run, and again when it may have changed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.artifacts import digests
from stages.artifacts.digests import DIGESTS, SETTLED_NS, WRITTEN_FROM, file_sha256, files_sha256, write_nothing

ROOT = Path(__file__).parents[2]
LARGE = bytes(WRITTEN_FROM)


@pytest.fixture
def hashed(monkeypatch):
    """Files that were read whole, in order; nothing is known yet."""
    read, digest_of = [], hashlib.file_digest

    def counted(file, name):
        read.append(file.name)
        return digest_of(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(digests, "SETTLED_NS", -(10**12))  # files of this test are as good as old
    digests._known.cache_clear()
    return read


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_read_once_until_it_changes(hashed, tmp_path):
    file = tmp_path / "a"
    file.write_bytes(b"one")
    assert [file_sha256(file), file_sha256(file)] == [sha256(b"one")] * 2
    assert len(hashed) == 1

    file.write_bytes(b"two")  # as long as before
    os.utime(file, (1, 1))
    assert file_sha256(file) == sha256(b"two")
    os.utime(file, (2, 2))
    assert file_sha256(file) == sha256(b"two")
    (tmp_path / "b").write_bytes(b"new")
    os.replace(tmp_path / "b", file)
    assert file_sha256(file) == sha256(b"new")
    assert len(hashed) == 4


def test_a_file_that_has_just_been_written_is_read_again(hashed, monkeypatch, tmp_path):
    monkeypatch.setattr(digests, "SETTLED_NS", SETTLED_NS)
    (tmp_path / "a").write_bytes(b"one")
    assert [file_sha256(tmp_path / "a") for _ in range(3)] == [sha256(b"one")] * 3
    assert len(hashed) == 3


def test_a_large_file_rests_before_it_is_read_and_is_read_once(hashed, monkeypatch, tmp_path):
    monkeypatch.setattr(digests, "SETTLED_NS", 10**8)
    monkeypatch.setattr(digests, "RESTED_FROM", len(LARGE))
    (tmp_path / "a").write_bytes(LARGE)
    assert [file_sha256(tmp_path / "a") for _ in range(3)] == [sha256(LARGE)] * 3
    assert len(hashed) == 1


def test_what_one_command_of_a_run_has_hashed_others_know(hashed, monkeypatch, tmp_path):
    monkeypatch.setenv(DIGESTS, str(tmp_path / "digests.jsonl"))
    (tmp_path / "large").write_bytes(LARGE)
    (tmp_path / "small").write_bytes(b"s")
    files_sha256([tmp_path / "large", tmp_path / "small"])
    with (tmp_path / "digests.jsonl").open("a") as file:
        file.write('[1, 2, "cut o')
    digests._known.cache_clear()  # as in another process

    assert files_sha256([tmp_path / "large", tmp_path / "small"]) == [sha256(LARGE), sha256(b"s")]
    assert sorted(Path(name).name for name in hashed) == ["large", "small", "small"]


@pytest.mark.usefixtures("hashed")
def test_another_process_reads_what_is_written(monkeypatch, tmp_path):
    monkeypatch.setenv(DIGESTS, str(tmp_path / "digests.jsonl"))
    (tmp_path / "large").write_bytes(LARGE)
    file_sha256(tmp_path / "large")
    code = (
        "import hashlib, sys; from pathlib import Path; from stages.artifacts.digests import file_sha256\n"
        "hashlib.file_digest = None\nprint(file_sha256(Path(sys.argv[1])))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "large")]
    assert subprocess.check_output(command, text=True, env=environment).strip() == sha256(LARGE)


@pytest.mark.usefixtures("hashed")
def test_a_place_that_takes_nothing_and_a_reader_write_nothing(monkeypatch, tmp_path):
    (tmp_path / "large").write_bytes(LARGE)
    monkeypatch.setenv(DIGESTS, str(tmp_path / "nowhere" / "digests.jsonl"))
    assert file_sha256(tmp_path / "large") == sha256(LARGE)
    monkeypatch.setenv(DIGESTS, str(tmp_path / "digests.jsonl"))
    write_nothing()
    assert file_sha256(tmp_path / "large") == sha256(LARGE)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["large"]


def test_several_files_are_hashed_at_once(tmp_path):
    files = [tmp_path / str(number) for number in range(20)]
    for file in files:
        file.write_text(file.name)
    assert files_sha256(files) == [sha256(file.name.encode()) for file in files]
