"""Inputs that a disk or a copy has damaged: one line that names the file and the remedy, and nothing written."""

import pytest
from workspace import OPTIONS, listing

from stages.artifacts.columns import GROUPS, ROLLOUTS
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import iterate_rows

PARQUET = {
    "problems.parquet": "problems.parquet",
    "repair_set.parquet": "repair_set.parquet",
    "rollouts": "rollouts/rollouts-00000.parquet",
    "groups": "groups/groups-00000.parquet",
}
CASES = [
    *((command, PARQUET[word]) for command, words in OPTIONS.items() for word in words.split() if word in PARQUET),
    ("import-problems", "problems.parquet"),
]
LINES = OPTIONS | {"import-problems": "problems.parquet"}


def damages(content):
    """The content cut off, lost, and with a bit turned over in its first page and in its footer."""
    page, footer = bytearray(content), bytearray(content)
    page[40] ^= 8  # behind the header of the first page
    footer[-8 - int.from_bytes(content[-8:-4], "little")] ^= 8
    return {"cut": content[:-50], "emptied": b"", "page": bytes(page), "footer": bytes(footer)}


@pytest.mark.parametrize(("command", "file"), CASES)
def test_damaged_parquet_is_named_by_every_command_that_reads_it(command, file, workspace, df):
    before, content = listing(workspace), (workspace / file).read_bytes()
    for damage, damaged in damages(content).items():
        (workspace / file).write_bytes(damaged)
        code, out, err = df(f"{command} {LINES[command]} --out out --dry-run")
        assert (code, out) == (1, ""), damage
        line = err.splitlines()[-1]  # `datasets` has a word of its own before
        assert line.startswith("error: ")
        assert "Traceback" not in err
        assert file in line
        assert "not a readable Parquet file" in line or "cannot be read" in line
        assert listing(workspace) == before


@pytest.mark.parametrize(("command", "spec"), [("build-masks", ROLLOUTS), ("train-policy", GROUPS)])
def test_a_step_that_lost_a_shard_is_refused_as_an_input(command, spec, workspace, df):
    rows = list(iterate_rows(workspace / spec.name, spec))
    step = Step.open(workspace / "earlier", Plan("earlier", {}, 0, {}))
    for index in range(2):
        step.write_shards(index, {spec: [row | {"sample": index} for row in rows]})
    step.finish()
    (step.out / f"{spec.name}-00001.parquet").unlink()
    before = listing(workspace)
    line = OPTIONS[command].replace(f"--{spec.name} {spec.name}", f"--{spec.name} earlier")
    code, _, err = df(f"{command} {line} --out out")
    assert code == 1
    remedy = "run the command that made it again with --overwrite"
    assert err == f"error: earlier/{spec.name}-00001.parquet: missing; {remedy}\n"
    assert listing(workspace) == before


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("command", OPTIONS)
def test_a_model_folder_with_a_file_that_is_cut_off_is_refused(command, file, workspace, df):
    content = (workspace / "model" / file).read_bytes()
    (workspace / "model" / file).unlink()
    (workspace / "model" / file).write_bytes(content[: len(content) // 2])
    before = listing(workspace)
    code, out, err = df(f"{command} {OPTIONS[command]} --out out")
    assert (code, out) == (1, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: model/{file}: not ")
    assert line.endswith("fetch or copy the model folder again")
    assert listing(workspace) == before
