"""What follows what in a run, by a maker that only notes what it is asked for."""

from pathlib import Path
from typing import Any

import pytest

from stages.chain import Chain, Round

INPUTS = {"problems": Path("train"), "base": Path("base"), "repair_set": Path("set")}


class Notes:
    """Makes nothing: a step's folder is its place."""

    def __init__(self) -> None:
        self.made: list[tuple[str, str, int, dict[str, Any]]] = []

    def make(self, place: str, command: str, seed: int, /, **inputs: Any) -> Path:
        self.made.append((place, command, seed, {name: str(given) for name, given in inputs.items()}))
        return Path(place)


def test_a_round_starts_from_the_policy_that_the_one_before_came_to() -> None:
    notes = Notes()
    rounds = list(Chain(notes.make, **INPUTS, seed=3).rounds(2, Path("base"), Path("repairer")))
    assert rounds[1] == Round(Path("round-2/rollout"), Path("round-2/build-masks"), Path("round-2/train-policy"))
    assert notes.made[3:] == [
        ("round-2/rollout", "rollout", 3002, {"problems": "train", "policy": "round-1/train-policy"}),
        (
            "round-2/build-masks",
            "build-masks",
            3002,
            {
                "rollouts": "round-2/rollout",
                "problems": "train",
                "repair_model": "repairer",
                "policy": "round-1/train-policy",
            },
        ),
        (
            "round-2/train-policy",
            "train-policy",
            3002,
            {
                "groups": "round-2/build-masks",
                "problems": "train",
                "policy": "round-1/train-policy",
                "reference": "base",
            },
        ),
    ]


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("none", []),
        ("sft", [("sft-repair", {"repair_set": "set", "model": "start"})]),
        (
            "rl",
            [
                ("sft-repair", {"repair_set": "set", "model": "start"}),
                (
                    "rl-repair",
                    {"problems": "train", "policy": "start", "repair_model": "1-sft-repair", "repair_set": "set"},
                ),
            ],
        ),
        ("rl_alone", [("rl-repair", {"problems": "train", "policy": "start", "repair_model": "start"})]),
    ],
)
def test_a_repair_model_starts_from_the_policy_whose_errors_it_repairs(kind: Any, steps: list[Any]) -> None:
    notes = Notes()
    Chain(notes.make, **INPUTS, seed=3).repair_model(kind, Path("start"))
    assert [(command, inputs) for _, command, _, inputs in notes.made] == steps
