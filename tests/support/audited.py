"""Repairs that an auditor has looked at, as `df rl-repair` leaves them, and their problems."""

from PIL import Image

from stages.artifacts.columns import EPISODES, PROBLEMS
from stages.artifacts.problems import encode_image
from stages.artifacts.step import Plan, Step
from stages.artifacts.store import write_rows
from stages.audit.episodes import CLEAN

PASTED, IGNORED = "answer_pasted", "image_ignored"
SCRIPT = "<script>alert('x')</script>"


def episode(problem_id, verdict=CLEAN, **changes):
    return {
        "iteration": 0,
        "problem_id": problem_id,
        "sample": 1,
        "attempt": 2,
        "error": "1 + 2 = 4. The answer is 4.",
        "text": "1 + 2 = 3. The answer is 3.",
        "reward": 1.0,
        "cost": 0.2,
        "gate_c1": True,
        "gate_audit": None if verdict is None else verdict == CLEAN,
        "category": None if verdict in (None, CLEAN) else verdict,
        "repair_reward": None if verdict is None else float(verdict == CLEAN),
    } | changes


def rl_repair(folder, episodes, **inputs):
    """What `df rl-repair` leaves of these inputs, but for its model."""
    step = Step.open(folder, Plan("rl-repair", {"reward": {"threshold": 1.0}}, 0, inputs))
    step.write_table(EPISODES, episodes)
    step.finish()
    return folder


def write_problems(file, ids):
    """Problems of these ids, of unlike pictures; every second question is a script."""
    rows = [
        {
            "problem_id": problem_id,
            "question": SCRIPT if number % 2 else "= What is the sum?",
            "images": [encode_image(Image.new("RGB", (number + 1, 3), (number, 0, 0)))],
            "answer": "3",
            "kind": None,
        }
        for number, problem_id in enumerate(ids)
    ]
    write_rows(file, PROBLEMS, [dict.fromkeys(["video", "fps", "choices", "preferred"]) | row for row in rows])
    return file
