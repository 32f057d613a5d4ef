"""lmms-eval, in its own environment, loads our checkpoint as it is, and answers and scores as `df evaluate` does."""

import io
import json
import os
import re
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from df_cli.main import app
from stages.artifacts.columns import SCORES
from stages.artifacts.store import iterate_rows

pytestmark = [pytest.mark.lmms, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
LMMS = ROOT / ".venv-lmms"
ROWS = 20
LEAST_PIXELS = 4 * 28 * 28
"""Of an image that qwen-vl-utils hands to the model: it makes smaller ones larger."""
# Importing `stages.model` first lets torchvision import beside a torch for CPUs.
LAUNCH = "import stages.model, runpy; runpy.run_module('lmms_eval', run_name='__main__')"


def in_lmms(tmp_path: Path, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python of lmms-eval's environment, in the project's folder, without the hub."""
    hub = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    environment = os.environ | hub | {"PYTHONPATH": str(ROOT), "OPENAI_API_KEY": "none"}
    command = [str(LMMS / "bin" / "python"), "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def enlarged(encoded: bytes) -> bytes:
    """A strip of three digits in the size of two rows of four; one of four as it is."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    if image.width * image.height >= LEAST_PIXELS:
        return encoded
    out = io.BytesIO()
    image.resize((112, 56)).save(out, "PNG")
    return out.getvalue()


def test_answers_and_scores_are_those_of_df_evaluate(tmp_path, digits, base_dir):
    table = pq.read_table(digits / "problems_test.parquet").slice(0, ROWS)
    rows = table.to_pylist()
    for row in rows:
        row["images"] = [image | {"bytes": enlarged(image["bytes"])} for image in row["images"]]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), tmp_path / "problems.parquet")
    settings = ["model.dtype=bfloat16", "evaluate.draws=1", "evaluate.image_removed=false"]
    options = [word for setting in settings for word in ("--set", setting)]
    inputs = ["--problems", tmp_path / "problems.parquet", "--policy", base_dir, "--out", tmp_path / "evaluate"]
    app([*map(str, ["evaluate", "--recipe", "digits", *inputs]), *options], standalone_mode=False)
    scores = (row for row in iterate_rows(tmp_path / "evaluate", SCORES) if row["mode"] == "greedy")
    ours = {row["problem_id"]: (row["text"], row["reward"]) for row in scores}

    model = f"pretrained={base_dir.relative_to(ROOT)},device=cpu,device_map=cpu,min_pixels=784,max_pixels=12544"
    task = ["--tasks", "digits", "--include_path", "data/digits/lmms_eval", "--limit", str(ROWS)]
    output = ["--log_samples", "--output_path", str(tmp_path / "lmms")]
    in_lmms(tmp_path, LAUNCH, "--model", "qwen2_5_vl", "--model_args", model, "--batch_size", "1", *task, *output)
    (samples,) = (tmp_path / "lmms").rglob("*_samples_digits.jsonl")
    theirs = {
        rows[sample["doc_id"]]["problem_id"]: (sample["filtered_resps"], sample["accuracy"])
        for sample in map(json.loads, samples.read_text().splitlines())
    }
    assert theirs == ours
    assert len(ours) == ROWS
    assert {score for _, score in ours.values()} == {0.0, 1.0}


def test_the_tasks_of_the_page_can_be_loaded_and_have_the_longest_answers_that_it_says(tmp_path):
    page = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    table = page[page.index("| benchmark | lmms-eval") : page.index("`mathvista_testmini` alone")]
    told = dict(re.findall(r"`([a-z0-9_]+)` \(([\d,]+)\)", table))
    assert len(told) >= 12
    code = """
import json, sys
import stages.model
from lmms_eval.tasks import TaskManager
from lmms_eval.utils import load_yaml_config
index = TaskManager("ERROR").task_index
files = {name: index[name]["yaml_path"] for name in sys.argv[1:]}
for file in files.values():
    load_yaml_config(file, mode="full")  # imports what scores it
print(json.dumps(files))
"""
    files = json.loads(in_lmms(tmp_path, code, *told).stdout.splitlines()[-1])
    for name, length in told.items():
        assert longest_answer(Path(files[name])) == int(length.replace(",", "")), name


def longest_answer(task: Path) -> int:
    """Of a task's file or the one that it includes; of qwen2_5_vl where neither says."""
    text = task.read_text(encoding="utf-8")
    if included := re.search(r"^include: (\S+)", text, re.M):
        text += (task.parent / included[1]).read_text(encoding="utf-8")
    found = re.search(r"max_new_tokens: (\d+)", text)
    return int(found[1]) if found else 128
