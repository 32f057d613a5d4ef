"""All five stages, evaluation and summary on a cut-down digits set; what they wrote is checked by other means."""

import csv
import math
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages.artifacts.columns import (
    AUDIT_AGREEMENT,
    AUDIT_SAMPLE,
    EPISODES,
    GROUPS,
    METRICS,
    REPAIRS,
    ROLLOUTS,
    SAMPLES,
    SCORES,
    SUMMARY,
)
from stages.artifacts.manifests import read_manifest
from stages.artifacts.stage import execute
from stages.artifacts.store import iterate_rows
from stages.audit_agreement import AuditAgreement
from stages.audit_sample import TO_LABEL, AuditSample
from stages.evaluate import Evaluate
from stages.model.loading import load_model
from stages.pages.page import MEGABYTE, report_page
from stages.recipe import load_recipe
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import RlRepair
from stages.s3_rollout import Rollout
from stages.s4_build_masks import BuildMasks
from stages.s5_train_policy import TrainPolicy
from stages.summary import summarize_run
from stages.training.heldout import ATTEMPTS

pytestmark = pytest.mark.timeout(600)

SMALL = [
    "sft.epochs=1",
    "repair_rl.problems=40",
    "repair_rl.iterations=2",
    "repair_rl.errors_per_iteration=12",
    "repair_rl.errors_per_step=6",
    "repair_rl.repairs_per_error=4",
    "repair_rl.c1_share=0.5",  # so that some of so few errors are gated
    "rollout.problems=30",
    "rollout.rows_per_shard=80",
    "train.problems_per_step=8",
    "evaluate.draws=2",
]
RECIPE = load_recipe("digits", SMALL)


@dataclass(frozen=True)
class Run:
    folder: Path
    problems: Path
    pairs: list[str]
    """Ids of the repair set, in its order."""
    stages: dict[str, Any]

    def rows(self, step: str, spec: Any) -> list[dict[str, Any]]:
        folder = self.folder / step
        single = folder / f"{spec.name}.parquet"
        return list(iterate_rows(single if single.is_file() else folder, spec))


@pytest.fixture(scope="module")
def run(tmp_path_factory, digits: Path) -> Run:
    """The pipeline, one round, in the folders that `make all` uses."""
    out = tmp_path_factory.mktemp("run")
    base = digits / "base"
    train, repair_set, test = (
        first_rows(digits / name, count, out)
        for name, count in (("problems_train.parquet", 200), ("repair_set.parquet", 400), ("problems_test.parquet", 40))
    )
    sft, rl, first = out / "1-sft-repair", out / "2-rl-repair", out / "round-1"
    policy = first / "train-policy"
    stages = {
        "1-sft-repair": SftRepair(RECIPE, repair_set, base),
        "2-rl-repair": RlRepair(RECIPE, train, base, sft, repair_set),
        "round-1/rollout": Rollout(RECIPE, train, base),
        "round-1/build-masks": BuildMasks(RECIPE, first / "rollout", train, rl, base),
        "round-1/train-policy": TrainPolicy(RECIPE, first / "build-masks", train, base),
        "evaluate-base": Evaluate(RECIPE, test, base),
        "evaluate-round-1": Evaluate(RECIPE, test, policy),
    }
    for name, stage in stages.items():
        assert execute(stage, out / name).ran
    return Run(out, train, pq.read_table(repair_set)["problem_id"].to_pylist(), stages)


def first_rows(file: Path, count: int, folder: Path) -> Path:
    pq.write_table(pq.read_table(file).slice(0, count), folder / file.name)
    return folder / file.name


@pytest.fixture(scope="module")
def answers(run: Run) -> dict[str, str]:
    table = pq.read_table(run.problems, columns=["problem_id", "answer"])
    return dict(zip(table["problem_id"].to_pylist(), table["answer"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def kinds(run: Run) -> dict[str, str]:
    table = pq.read_table(run.problems, columns=["problem_id", "kind"])
    return dict(zip(table["problem_id"].to_pylist(), table["kind"].to_pylist(), strict=True))


def stated(text: str) -> str | None:
    found = re.findall(r"The answer is (\d+)\.", text)
    return found[-1] if found else None


def test_sft_trains_a_loadable_model_and_repairs_what_it_held_out(run, digits):
    losses = [row["value"] for row in run.rows("1-sft-repair", METRICS) if row["metric"] == "loss"]
    assert len(losses) == math.ceil(360 / RECIPE.sft.batch_size)
    assert sum(losses[-5:]) < sum(losses[:5])
    samples = run.rows("1-sft-repair", SAMPLES)
    held_out = run.pairs[-40:]
    assert [row["problem_id"] for row in samples] == [name for name in held_out for _ in range(ATTEMPTS)]
    assert all((stated(row["text"]) == row["answer"]) == (row["reward"] == 1) for row in samples)
    before = load_model(digits / "base").model.state_dict()
    after = load_model(run.folder / "1-sft-repair" / "model").model.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_every_episode_has_the_reward_of_equation_4(run, answers):
    episodes = run.rows("2-rl-repair", EPISODES)
    section = RECIPE.repair_rl
    assert len(episodes) == section.iterations * section.errors_per_iteration * section.repairs_per_error
    for row in episodes:
        correct = float(stated(row["text"]) == answers[row["problem_id"]])
        assert row["reward"] == correct
        assert stated(row["error"]) != answers[row["problem_id"]]
        gate = row["gate_c1"] and row["gate_audit"]
        assert row["repair_reward"] == pytest.approx(gate * (correct - 0.5 * row["cost"]), abs=1e-6)


@pytest.mark.parametrize("step", ["1-sft-repair", "2-rl-repair"])
def test_held_out_repairs_are_summed_up(run, step):
    """Acc@2 of c correct among 8: one minus the chance that two drawn without replacement are both wrong."""
    by_error = defaultdict(list)
    samples = run.rows(step, SAMPLES)
    for row in samples:
        by_error[row["problem_id"]].append(row["reward"])
    correct = [sum(rewards) for rewards in by_error.values()]
    at_2 = [1 - (8 - c) * (7 - c) / 56 for c in correct]
    measures = {row["measure"]: row for row in run.rows(step, SUMMARY) if row["section"] == "held-out repairs"}
    audited = {f"Acc@{k}, flagged counted wrong" for k in (1, 2)}
    assert measures.keys() == {"Acc@1", "Acc@2", "edit cost"} | audited
    honest = sum(row["reward"] == 1 and not row["flagged"] for row in samples)
    assert measures["Acc@1, flagged counted wrong"]["value"] == pytest.approx(honest / len(samples))
    assert measures["Acc@1"]["value"] == pytest.approx(sum(correct) / len(samples))
    assert measures["Acc@2"]["value"] == pytest.approx(sum(at_2) / len(at_2))
    assert measures["edit cost"]["value"] == pytest.approx(sum(row["cost"] for row in samples) / len(samples))
    assert {row["n"] for row in measures.values()} == {40}


def test_c1_s_hit_rate_is_told_by_kind_of_problem(run, kinds):
    """An error is one case, however many repairs it has."""
    gates = {(e["iteration"], e["problem_id"], e["sample"]): e["gate_c1"] for e in run.rows("2-rl-repair", EPISODES)}
    closed = defaultdict(list)
    for (_, problem_id, _), gate in gates.items():
        if gate is not None:
            closed[kinds[problem_id]].append(not gate)
    told = {
        row["measure"]: row for row in run.rows("2-rl-repair", SUMMARY) if row["section"].startswith("errors with C1")
    }
    assert {kind: (row["value"], row["n"]) for kind, row in told.items()} == {
        kind: (pytest.approx(sum(hits) / len(hits)), len(hits)) for kind, hits in closed.items()
    }


def test_an_error_is_gated_by_c1_as_a_whole(run):
    gates = defaultdict(set)
    for row in run.rows("2-rl-repair", EPISODES):
        gates[row["iteration"], row["problem_id"], row["sample"]].add(row["gate_c1"])
    assert all(len(found) == 1 for found in gates.values())


def test_a_run_can_be_audited_beside_labels(run, answers, tmp_path):
    """Labels that repeat the verdicts agree in full, on right repairs of this run and no others."""
    folder = run.folder / "2-rl-repair"
    audited = [row for row in run.rows("2-rl-repair", EPISODES) if row["reward"] == 1 and row["gate_audit"] is not None]
    execute(AuditSample(folder, run.problems, 1000, False, seed=0), tmp_path / "sample")
    with (tmp_path / "sample" / TO_LABEL / "labels.csv").open(encoding="utf-8-sig", newline="") as file:
        sheet = list(csv.DictReader(file))
    assert sorted(row["repair"] for row in sheet) == sorted(row["text"] for row in audited)
    assert all(row["answer"] == stated(row["repair"]) == answers[row["episode_id"].split("/")[1]] for row in sheet)
    strata = iterate_rows(tmp_path / "sample" / "audit_sample.parquet", AUDIT_SAMPLE)
    labels = [{"episode_id": row["episode_id"], "label": row["stratum"]} for row in strata]
    pq.write_table(pa.Table.from_pylist(labels), tmp_path / "labels.parquet")
    agreement = AuditAgreement(folder, tmp_path / "labels.parquet", tmp_path / "sample")
    assert execute(agreement, tmp_path / "out").manifest["rows_out"] == len(audited)
    rows = list(iterate_rows(tmp_path / "out" / "audit_agreement.parquet", AUDIT_AGREEMENT))
    assert {row["value"] for row in rows if row["measure"] == "agreement"} == {1}


def test_rollouts_are_scored_and_their_tokens_have_log_probs(run, answers):
    rollouts = run.rows("round-1/rollout", ROLLOUTS)
    assert len(rollouts) == 30 * RECIPE.rollout.samples_per_problem
    for row in rollouts:
        assert len(row["ids"]) == len(row["sampler_logprobs"]) <= RECIPE.rollout.max_new_tokens
        assert max(row["sampler_logprobs"]) <= 0
        assert row["reward"] == float(stated(row["text"]) == answers[row["problem_id"]])
    assert len(list((run.folder / "round-1/rollout").glob("rollouts-*.parquet"))) == 3


def test_the_selected_repair_is_the_cheapest_that_is_right_and_not_flagged(run):
    by_error = defaultdict(list)
    for row in run.rows("round-1/build-masks", REPAIRS):
        by_error[row["problem_id"], row["sample"]].append(row)
    assert by_error
    for candidates in by_error.values():
        assert [row["candidate"] for row in candidates] == [0, 1]
        feasible = [row for row in candidates if row["reward"] == 1 and not row["flagged"]]
        chosen = [row for row in candidates if row["selection"] == "chosen"]
        assert len(chosen) == bool(feasible)
        if chosen:
            assert chosen[0]["cost"] == min(row["cost"] for row in feasible)


def test_groups_pair_errors_with_repairs_and_mark_from_the_first_difference_on(run):
    groups = run.rows("round-1/build-masks", GROUPS)
    pairs = defaultdict(dict)
    for row in groups:
        assert len(row["ids"]) == len(row["mask"]) == len(row["old_logprobs"])
        if row["in_pair"]:
            pairs[row["problem_id"], row["sample"]][row["role"]] = row
        else:
            assert not any(row["mask"])
            assert row["role"] in ("correct", "error")
    assert len(pairs) == read_manifest(run.folder / "round-1/build-masks")["counts"]["errors_repaired"] > 0
    for pair in pairs.values():
        error, repair = pair["error"], pair["repair"]
        assert error["reward"] == 0
        assert repair["reward"] == 1
        shared = next(
            (i for i, (a, b) in enumerate(zip(error["ids"], repair["ids"], strict=False)) if a != b),
            min(len(error["ids"]), len(repair["ids"])),
        )
        for row in (error, repair):
            assert not any(row["mask"][:shared])
            assert row["mask"][shared : shared + 1] in ([True], [])


def test_every_step_of_reinforcement_tells_how_far_its_sampler_was(run):
    """In float32 that is rounding; rollouts bring their log-probs along to the groups."""
    rollouts = {(row["problem_id"], row["sample"]): row for row in run.rows("round-1/rollout", ROLLOUTS)}
    for row in run.rows("round-1/build-masks", GROUPS):
        own = None if row["role"] == "repair" else rollouts[row["problem_id"], row["sample"]]["sampler_logprobs"]
        assert row["sampler_logprobs"] == own
    for step in ("2-rl-repair", "round-1/train-policy"):
        metrics = {(row["step"], row["metric"]): row["value"] for row in run.rows(step, METRICS)}
        steps = {number for number, name in metrics if name == "loss"}
        assert steps == {number for number, name in metrics if name == "mismatch_mean"}
        for number in steps:
            assert 0 < metrics[number, "mismatch_mean"] <= metrics[number, "mismatch_max"] < 1e-3
            assert metrics[number, "effective_sample_size"] == pytest.approx(1, abs=1e-6)


def test_the_first_optimizer_step_starts_from_ratio_one(run):
    metrics = {(row["step"], row["metric"]): row["value"] for row in run.rows("round-1/train-policy", METRICS)}
    for role in ("error", "repair"):
        assert metrics[1, f"ratio_mean/{role}"] == pytest.approx(1, abs=1e-4)
        assert metrics[1, f"ratio_max/{role}"] == pytest.approx(1, abs=1e-3)
        assert 0 < metrics[1, f"gate_density/{role}"] < 0.5
    assert metrics[1, "grad_norm"] > 0


def test_the_page_shows_every_repair_with_its_tokens_and_pictures(run):
    found = report_page([run.folder], 5 * MEGABYTE)
    assert found.count("<article") == len(run.rows("round-1/build-masks", REPAIRS))
    assert "differences by word" not in found
    assert "without questions and pictures" not in found


def test_the_summary_reports_the_gain_that_the_scores_show(run):
    measures = {(m.section, m.measure): m.value for m in summarize_run(run.folder, 1)}
    accuracy = []
    for name in ("evaluate-base", "evaluate-round-1"):
        rewards = [row["reward"] for row in run.rows(name, SCORES) if row["mode"] == "sampled"]
        accuracy.append(sum(rewards) / len(rewards))
    assert measures["base policy", "sampled accuracy"] == pytest.approx(accuracy[0])
    assert measures["final policy", "sampled accuracy"] == pytest.approx(accuracy[1])
    assert measures["gain, final over base", "sampled accuracy"] == pytest.approx(accuracy[1] - accuracy[0])
    assert (run.folder / "summary.parquet").is_file()


def test_a_run_on_siblings_has_no_repair_model_in_its_summary(run, tmp_path, digits):
    recipe = load_recipe("digits", [*SMALL, "masks.repairer=sibling"])
    first = run.folder / "round-1"
    stage = BuildMasks(recipe, first / "rollout", run.problems, None, digits / "base")
    masks = execute(stage, tmp_path / "round-1" / "build-masks").manifest
    for name in ("round-1/rollout", "round-1/train-policy", "evaluate-base", "evaluate-round-1"):
        shutil.copytree(run.folder / name, tmp_path / name, ignore=shutil.ignore_patterns("model"))
    measures = {(m.section, m.measure): m.value for m in summarize_run(tmp_path, 1)}

    repaired = masks["counts"]["errors_repaired"] / masks["counts"]["repair_triggered"]
    assert measures["round 1", "errors with a selected repair"] == pytest.approx(repaired) == 1
    assert {section.removesuffix(", by kind") for section, _ in measures} == {
        "round 1", "base policy", "final policy", "gain, final over base", "device-seconds",
    }  # fmt: skip
    assert {name for section, name in measures if section == "device-seconds"} == {
        "rollout", "build-masks", "train-policy", "evaluate",
    }  # fmt: skip


def test_a_second_run_does_nothing(run):
    def state() -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in run.folder.rglob("*")}

    before = state()
    assert not any(execute(stage, run.folder / name).ran for name, stage in run.stages.items())
    assert state() == before
