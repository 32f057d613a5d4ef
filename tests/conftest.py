"""Real parts for the tests: the digits data set with its trained base policy, and tiny random models."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "data" / "digits"
# Tiny models are fastest on one thread; several wait for each other. Read when torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import stages.model  # noqa: E402, F401 - torchvision imports behind it alone
import terse_configurations  # noqa: E402, F401


def decoded(problem):
    """The problem with its images at hand."""
    return replace(problem, images=tuple(problem.images))


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run `df` with these words here (torch is imported once); gives exit code, stdout and stderr."""
    from df_cli.main import main

    def run(*words):
        monkeypatch.setattr("sys.argv", ["df", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        return exit_info.value.code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def digits():
    return DIGITS


@pytest.fixture(scope="session")
def base_dir():
    return DIGITS / "base"


@pytest.fixture(scope="session")
def recipe():
    from stages.recipe import load_recipe

    return load_recipe("digits")


@pytest.fixture(scope="session")
def problems():
    """Twenty problems: every kind of question, strips of three and of four digits."""
    from stages.artifacts.problems import ProblemSet

    problem_set = ProblemSet(DIGITS / "problems_test.parquet")
    return [decoded(problem) for problem in problem_set.many(problem_set.ids[:20])]


@pytest.fixture(scope="session")
def repair_problems():
    """Forty problems of the repair set, `extra` with an error of the base policy and its repair."""
    from stages.artifacts.columns import REPAIR_SET
    from stages.artifacts.problems import ProblemSet

    problem_set = ProblemSet(DIGITS / "repair_set.parquet", REPAIR_SET)
    return [decoded(problem) for problem in problem_set.many(problem_set.ids[:40])]


@pytest.fixture(scope="session")
def tiny_vlm():
    """A random Qwen2.5-VL, in evaluation mode; tests that change it take a copy."""
    from data.strips.tiny_model import tiny_qwen2_5_vl, train_tokenizer

    texts = ["user\nassistant\nWhat is the sum of the digits?", "The digits are 1, 2. 1 + 2 = 3. The answer is 3."]
    vlm = tiny_qwen2_5_vl(train_tokenizer(texts * 20), seed=0)
    vlm.model.eval()
    return vlm


@pytest.fixture
def unwrapped(tiny_vlm):
    """A copy of the model as it is loaded, with transformers' own attention."""
    model = copy.deepcopy(tiny_vlm.model)
    model.generation_config = tiny_vlm.generation_config
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(scope="session")
def tiny_internvl(tiny_vlm, tmp_path_factory):
    """A random InternVL with the same tokens."""
    from tiny_internvl import tiny_internvl

    return tiny_internvl(tiny_vlm.tokenizer, tmp_path_factory.mktemp("internvl"))


@pytest.fixture(scope="session")
def base_vlm(base_dir):
    """The trained base policy; tests that change it take a copy."""
    from stages.model.loading import load_model

    return load_model(base_dir)


@pytest.fixture(scope="session")
def copy_of():
    """A function that copies a model with weights of its own."""
    return lambda vlm: replace(vlm, model=copy.deepcopy(vlm.model))


@pytest.fixture
def step(tmp_path):
    """An output folder that is being filled."""
    from stages.artifacts.step import Plan, Step

    return Step.open(tmp_path / "out", Plan("test", {}, 0, {}))


@pytest.fixture(scope="session")
def math_reward():
    """The rule-based reward; whole numbers never start its workers."""
    from stages.reward.rewards import load_reward

    with load_reward("math", workers=1, timeout_s=5.0) as reward:
        yield reward
