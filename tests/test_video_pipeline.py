"""Rollout to training, and evaluation, on videos of handwritten digits.

The base policy never saw a video, but one of two equal frames is to it the image that they show.
"""

import math
import re
from collections import defaultdict

import pyarrow.parquet as pq
import pytest
import torch

from data.strips.tiny_model import plain_logprobs
from stages.artifacts.columns import GROUPS, METRICS, PROBLEMS, ROLLOUTS, SCORES
from stages.artifacts.manifests import read_manifest
from stages.artifacts.problems import ProblemSet, encode_image
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows, write_rows
from stages.evaluate import Evaluate
from stages.model.batches import encode_prompt, response_batch
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy

pytestmark = pytest.mark.timeout(600)

RECIPE = load_recipe(
    "digits",
    [
        "audit.auditor=none",
        "masks.candidates=4",
        "rollout.problems=null",
        "rollout.temperature=1.0",
        "train.problems_per_step=8",
        "evaluate.draws=1",
    ],
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, problems, base_dir):
    """Twelve problems: a still video each, but the last has its strip as an image. Folders of the stages by name."""
    folder = tmp_path_factory.mktemp("videos")
    write_rows(
        folder / "problems.parquet",
        PROBLEMS,
        [
            {"problem_id": p.problem_id, "question": p.question, "answer": p.answer, "kind": p.kind}
            | ({"images": [], "video": [encode_image(p.images[0])] * 2, "fps": 4.0} if index < 11 else
               {"images": [encode_image(p.images[0])]})
            for index, p in enumerate(problems[:12])
        ],
    )  # fmt: skip
    made = folder / "problems.parquet"
    stages = {
        "rollout": Rollout(RECIPE, made, base_dir),
        "build-masks": BuildMasks(RECIPE, folder / "rollout", made, base_dir, base_dir),
        "train-policy": TrainPolicy(RECIPE, folder / "build-masks", made, base_dir),
        "evaluate": Evaluate(RECIPE, made, base_dir),
    }
    for name, stage in stages.items():
        execute(stage, folder / name)
    return folder


def test_the_policy_reads_still_videos_as_images(run):
    rewards = [row["reward"] for row in iterate_rows(run / "rollout", ROLLOUTS)]
    assert len(rewards) == 12 * RECIPE.rollout.samples_per_problem
    assert 0.2 < sum(rewards) / len(rewards) < 0.95


def test_old_logprobs_are_those_of_plain_rows_with_the_video(run, base_vlm):
    problems = ProblemSet(run / "problems.parquet")
    groups = [row for row in iterate_rows(run / "build-masks", GROUPS) if problems[row["problem_id"]].video]
    assert read_manifest(run / "build-masks")["counts"]["errors_repaired"] > 0
    assert any(row["in_pair"] and row["role"] == "repair" for row in groups)
    for row in groups[::5]:
        problem = problems[row["problem_id"]]
        text = policy_prompt(base_vlm.processor, RECIPE.prompt, problem)
        assert text.text.count("<|video_pad|>") == 1
        batch = response_batch(base_vlm, [encode_prompt(base_vlm, text)], [row["ids"]])
        with torch.no_grad():
            expected_T = plain_logprobs(base_vlm, batch, temperature=1.0)[0]
        torch.testing.assert_close(torch.tensor(row["old_logprobs"]), expected_T, atol=1e-4, rtol=0)


def test_the_page_shows_the_frames(run):
    page = (run / "build-masks" / "samples.html").read_text()
    articles = re.findall(r"<article>.*?</article>", page, re.DOTALL)
    assert articles
    assert {article.count("<img") for article in articles} <= {1, 2}
    assert any(article.count("<img") == 2 for article in articles)


def test_training_starts_from_ratio_one_and_changes_the_vision_tower(run, base_vlm):
    rows = iterate_rows(run / "train-policy" / "metrics.parquet", METRICS)
    metrics = {(row["step"], row["metric"]): row["value"] for row in rows}
    for role in ("error", "repair"):
        assert metrics[1, f"ratio_max/{role}"] == pytest.approx(1, abs=1e-3)
    assert math.isfinite(metrics[1, "grad_norm"])
    before = base_vlm.model.base_model.visual.state_dict()
    after = load_model(run / "train-policy" / "model").model.base_model.visual.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_on_blank_frames_the_question_and_the_size_alone_tell_answers_apart(run):
    """Of strips of one size with one question the same answer is given; on the frames themselves another."""
    problems = ProblemSet(run / "problems.parquet")
    seen, blank = defaultdict(set), defaultdict(set)
    for row in iterate_rows(run / "evaluate", SCORES):
        problem = problems[row["problem_id"]]
        if problem.video and row["mode"] != "sampled":
            answers = seen if row["mode"] == "greedy" else blank
            answers[problem.question, problem.video.frames[0].size].add(row["text"])
    assert {len(texts) for texts in blank.values()} == {1}
    assert max(len(texts) for texts in seen.values()) > 1
    assert pq.read_table(run / "evaluate" / "summary.parquet").num_rows > 0
