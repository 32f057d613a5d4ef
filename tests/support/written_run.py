"""A run of `make all` written by the store, without a model: numbers that are worked out by hand."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from stages.artifacts.columns import CURVES, GROUPS, METRICS, PROBLEMS, REPAIRS, ROLLOUTS, SCORES
from stages.artifacts.ledger import CostLedger
from stages.artifacts.plan import Plan
from stages.artifacts.problems import encode_image
from stages.artifacts.step import Step
from stages.artifacts.store import write_rows
from stages.engines.loading import open_codec
from stages.recipe import load_recipe
from stages.study.curves import Point, Run, rows_of
from stages.study.run_folders import run_folder

BASE = Path(__file__).parents[2] / "data" / "digits" / "base"
RECIPE = {"reward": {"threshold": 1.0}}
OF_ROLLOUTS = {"reward_mean": 0.75, "reward_std": 0.25, "response_length": 12.0, "cut_share": 0.125,
               "groups_without_contrast": 0.5}  # fmt: skip
"""Metrics of the first optimizer step; the n-th step of round n' has its (n + n' - 1)-th part."""
ERROR, REPAIR = "The digits are 1, 2. The answer is 4.", "The digits are 1, 2. The answer is 3."


@cache
def codec():
    return open_codec(BASE, load_recipe("digits"))


def ids(text):
    return codec().tokenizer(text, add_special_tokens=False)["input_ids"]


def write_problems(file, count, *, text="", kinds=("sum", "difference"), side=3):
    """Pictures of noise, so that they do not shrink."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(count)]
    rows = [
        {"problem_id": f"p{number}{text}", "question": f"How many?{text}", "images": [encode_image(picture)],
         "answer": f"3{text}", "kind": kinds[number % len(kinds)] + text, "video": None, "fps": None, "choices": None,
         "preferred": None}
        for number, picture in enumerate(pictures)
    ]  # fmt: skip
    write_rows(file, PROBLEMS, rows)
    return file


def write_step(out, name, seconds, tables, *, counts=(), dropped=(), rows=(0, 0), inputs=(), recipe=()):
    ledger = CostLedger(clock=lambda: 0.0)
    ledger.device_seconds.update(seconds)
    step = Step.open(out, Plan(name, RECIPE | dict(recipe), 0, dict(inputs)), ledger=ledger)
    step.tally.rows_in, step.tally.rows_out = rows
    step.tally.counts.update(counts)
    step.tally.dropped.update(dropped)
    for spec, of in tables.items():
        if spec is METRICS:
            step.write_table(spec, of)
        else:
            step.write_shards(0, {spec: of})
    step.finish()


def write_scores(out, right, *, kinds=(None,), inputs=()):
    """Four problems; of each a greedy answer, and two sampled ones that are like it."""
    rows = [
        {"problem_id": f"t{number}", "kind": kinds[number % len(kinds)], "mode": mode, "draw": draw, "text": "",
         "reward": float(number < right)}
        for number in range(4)
        for mode, draws in (("greedy", 1), ("sampled", 2))
        for draw in range(draws)
    ]  # fmt: skip
    write_step(out, "evaluate", {"generate": 100.0}, {SCORES: rows}, rows=(4, len(rows)), inputs=inputs)


def repair_row(place, candidate, **changes):
    row = {"problem_id": place, "sample": 0, "candidate": candidate, "ids": ids(REPAIR), "text": REPAIR, "reward": 1.0,
           "cost": 0.125, "flagged": False, "category": None, "evidence": None, "selection": "chosen"}  # fmt: skip
    return row | changes


def group_row(place, role, text, marked):
    length = len(ids(text))
    return {"problem_id": place, "sample": 0, "role": role, "in_pair": True, "ids": ids(text),
            "reward": float(role == "repair"), "mask": [spot in marked for spot in range(length)],
            "old_logprobs": [-1.0] * length, "finish_reason": "stop", "sampler_logprobs": None}  # fmt: skip


def write_round(run, number, problems, *, count=4, text=""):
    """Every problem has one error, with a selected repair and one that is wrong, flagged or costlier."""
    folder, names = run / f"round-{number}", [f"p{place}{text}" for place in range(count)]
    rollouts = [
        {"problem_id": name, "sample": sample, "ids": ids(ERROR), "sampler_logprobs": [-1.0] * len(ids(ERROR)),
         "finish_reason": "stop", "reward": reward, "text": ERROR + text}
        for name in names
        for sample, reward in ((0, 0.0), (1, 1.0), (2, None))
    ]  # fmt: skip
    inputs = {"problems": problems, "policy": BASE}
    write_step(folder / "rollout", "rollout", {"generate": 10.0}, {ROLLOUTS: rollouts}, rows=(count, 3 * count),
               counts={"correct": count, "unscored": count}, inputs=inputs)  # fmt: skip
    others = (
        {"reward": 0.0, "cost": 0.5, "selection": "wrong", "text": ERROR + text, "ids": ids(ERROR + text)},
        {
            "flagged": True,
            "category": f"answer_pasted{text}",
            "cost": 0.25,
            "selection": "flagged",
            "evidence": f"seen{text}",
        },
        {"cost": 0.75, "selection": "costlier"},
    )
    repairs = [
        row
        for place, name in enumerate(names)
        for row in (repair_row(name, 0, ids=ids(REPAIR + text)), repair_row(name, 1, **others[place % len(others)]))
    ]
    last = len(ids(ERROR)) - 2
    groups = [
        group_row(name, role, of, {last})
        for name in names
        for role, of in (("error", ERROR + text), ("repair", REPAIR + text))
    ]
    counts = {"repair_triggered": count, "errors_repaired": count, "candidates_audited": 2 * count,
              "candidates_flagged": 1, "tokens_in_pairs": 200, "tokens_marked": 16}  # fmt: skip
    masks = {"masks": load_recipe("digits").masks.model_dump(), "vocabulary": codec().vocabulary_sha256}
    write_step(
        folder / "build-masks",
        "build-masks",
        {"generate": 20.0, "score": 5.0},
        {REPAIRS: repairs, GROUPS: groups},
        counts=counts,
        dropped={"unscored": count},
        rows=(3 * count, 2 * count),
        inputs=inputs,
        recipe=masks,
    )
    metrics = [
        {"step": 2 * number - 1 + half, "metric": metric, "value": scale * (0.5 * number + half)}
        for half in (0, 1)
        for metric, scale in (("entropy/error", 1), ("grad_norm", 1), ("mismatch_mean", 1), ("kl_ref", 0.125))
    ]
    metrics += [
        {"step": 2 * number - 1 + half, "metric": metric, "value": value / (number + half)}
        for half in (0, 1)
        for metric, value in OF_ROLLOUTS.items()
    ]
    write_step(folder / "train-policy", "train-policy", {"train": 40.0}, {METRICS: metrics}, rows=(count, count),
               dropped={"all_correct": 2})  # fmt: skip


def write_run(run, *, rounds=2, count=4, text="", side=3, final=3, kinds=(None,)):
    """Base right on one of four problems, the final policy on `final`; each round costs 75 device-seconds."""
    run.mkdir(parents=True, exist_ok=True)
    problems = write_problems(run.with_name(f"{run.name}-problems.parquet"), count, text=text, side=side)
    for number in range(1, rounds + 1):
        write_round(run, number, problems, count=count, text=text)
    write_scores(run / "evaluate-base", 1, kinds=kinds)
    write_scores(run / f"evaluate-round-{rounds}", final, kinds=kinds)
    return run


def study_run(variant, seed, end, *, cost=75.0):
    """Recorded: right on nothing, then on `end`, after one round of 20 rollouts."""
    points = [
        Point(float(n), cost * n, 20.0 * n, {mode: np.array(values) for mode in ("sampled", "greedy")})
        for n, values in ((0, [0.0] * len(end)), (1, end))
    ]
    return Run(variant, seed, "test", key=f"{variant}{seed}", points=points)


def write_study(study):
    """`ours` with seeds 0 (two rounds) and 1 (one round), `cleared` whose rows were removed, `old` of which no step is
    there, `rival` under way in its first round."""
    recorded = {("ours", 0): 2, ("ours", 1): 1, ("cleared", 0): 1, ("old", 0): 0}
    for (variant, seed), rounds in recorded.items():
        if rounds:
            write_run(run_folder(study, variant, seed, None), rounds=rounds)
    for file in run_folder(study, "cleared", 0, None).glob("round-1/*/*-*.parquet"):
        file.unlink()
    under_way = write_run(run_folder(study, "rival", 0, None), rounds=1)
    (under_way / "round-1" / "train-policy" / "manifest.json").unlink()
    write_run(run_folder(study, "ours", 1000, 1e-4), rounds=1)
    runs = [study_run(variant, seed, [1.0, 0.0]) for variant, seed in recorded]
    write_rows(study / "curves.parquet", CURVES, rows_of(runs))
    return study
