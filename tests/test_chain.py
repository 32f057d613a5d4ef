"""What follows what in a run, by a maker that only notes what it is asked for."""

from pathlib import Path
from typing import Any

import pytest

from stages.chain import Chain, Round, trained_before, training_place

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


def test_an_untrained_repair_model_is_the_policy() -> None:
    notes = Notes()
    assert Chain(notes.make, **INPUTS, seed=3).repair_model("untrained", Path("start")) == Path("start")
    assert not notes.made


@pytest.mark.parametrize(
    ("step", "command", "before"),
    [
        ("1-sft-repair", "sft-repair", []),
        ("2-rl-repair", "rl-repair", ["1-sft-repair"]),
        ("round-1/train-policy", "train-policy", ["1-sft-repair", "2-rl-repair"]),
        (
            "round-2/rl-repair",
            "rl-repair",
            ["1-sft-repair", "2-rl-repair", "round-1/train-policy", "round-1/rl-repair", "round-2/train-policy"],
        ),
    ],
)
def test_a_training_step_knows_its_run_and_what_came_before_it(
    step: str, command: str, before: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "mine"
    assert training_place(run / step) == (run, command)
    assert trained_before(run / step) == [run / place for place in before]
    run.mkdir()
    monkeypatch.chdir(run)
    assert training_place(Path(step)) == (run, command)


@pytest.mark.parametrize(
    "step", ["train-policy", "round-1/rollout", "round-0/train-policy", "rounds/train-policy", "x"]
)
def test_another_folder_lies_in_no_run(step: str, tmp_path: Path) -> None:
    assert training_place(tmp_path / step) is None
