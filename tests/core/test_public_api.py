"""What other trainers import: names and places that stay."""

import importlib
import subprocess
import sys

import pytest

import stages.core
import stages.reward

API = {
    "DifferenceMasks",
    "PolicyLoss",
    "Selection",
    "answer_gap_advantages",
    "c1_gate",
    "difference_masks",
    "dpo_loss",
    "edit_cost",
    "edit_script",
    "entropy_gates",
    "evened_gate",
    "gae",
    "gate_weights",
    "group_advantages",
    "kl_estimate",
    "leaky_gate",
    "mismatch",
    "outcome_loss",
    "overlong_penalty",
    "perception_gate",
    "policy_loss",
    "process_advantages",
    "repair_reward",
    "select_repair",
    "soft_weights",
    "step_ids",
    "step_mask",
    "truncated_weights",
    "value_loss",
    "whiten",
}
OLD_PLACES = [
    ("stages.core.alignment", "difference_masks", stages.core),
    ("stages.core.masks", "soft_weights", stages.core),
    ("stages.core.advantages", "group_advantages", stages.core),
    ("stages.core.objectives", "policy_loss", stages.core),
    ("stages.scoring.answers", "score_answer", stages.reward),
]


def test_the_public_names_are_these():
    assert set(stages.core.__all__) == API
    assert stages.core.__all__ == sorted(stages.core.__all__)
    assert all(callable(getattr(stages.core, name)) for name in API)
    assert stages.reward.__all__ == ["score_answer"]


@pytest.mark.parametrize(("place", "name", "package"), OLD_PLACES)
def test_a_name_stands_where_it_stood(place, name, package):
    assert getattr(importlib.import_module(place), name) is getattr(package, name)


def test_a_run_is_summarized_without_torch():
    code = "import sys, stages.summary; assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
