"""A training run that goes on from a checkpoint does what it would have done; one that diverges stops in time."""

import math

import pytest
import torch
from torch import nn

from stages.artifacts.manifests import MODEL
from stages.artifacts.stage import execute
from stages.artifacts.step import CHECKPOINTS, Plan, Step
from stages.core.objectives import has_critic
from stages.errors import ModelError
from stages.model.batches import encode_prompt
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.runtime.interruption import Requests
from stages.s1_sft_repair import SftRepair
from stages.s2_rl_repair import RlRepair
from stages.sections import LoraSection, ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.checkpoints import Checkpoints
from stages.training.groups import with_token_advantages
from stages.training.losses import PolicyObjective, SupervisedLoss
from stages.training.metrics import MetricsLog
from stages.training.trainer import MACHINE_METRICS, Trainer, TrainingRow

ROLLOUT = RolloutSection(max_new_tokens=12, temperature=0.7)
DROPOUT = 0.3


@pytest.fixture(scope="module")
def prompts(tiny_vlm, problems, recipe):
    return [encode_prompt(tiny_vlm, policy_prompt(tiny_vlm.processor, recipe.prompt, p)) for p in problems[:3]]


@pytest.fixture
def open_trainer(tiny_vlm, copy_of, tmp_path):
    """A function: a trainer of a copy of the tiny model, whose attention drops some of what it sees."""

    def opened(algorithm="grpo", **machine):
        vlm = copy_of(tiny_vlm)
        vlm.model.set_attn_implementation("sdpa")
        for layer in vlm.model.get_decoder().layers:
            layer.self_attn.attention_dropout = DROPOUT
        return Trainer(
            vlm,
            OptimizerSection(learning_rate=1e-3, weight_decay=0.1, warmup_steps=3, max_skipped_steps=1),
            temperature=0.7,
            machine=TrainerSection(**machine),
            critic_from=tmp_path / "nowhere" if has_critic(algorithm) else None,
            critic_rate=3.0,
        )

    return opened


def train(trainer, prompts, algorithm, first, last):
    """Optimizer steps on rows that differ from step to step; their metrics."""
    section = ObjectiveSection(algorithm=algorithm)
    metrics = []
    for step in range(first, last):
        random = torch.Generator().manual_seed(step)
        rows = [
            TrainingRow(prompt, torch.randint(7, 40, (6,), generator=random).tolist(), "error", (-1.0) ** i * (1 + i))
            for i, prompt in enumerate(prompts)
        ]
        if algorithm == "ppo":
            trainer.start_critic([row.advantage for row in rows])
        rows = with_token_advantages(trainer.with_old_logprobs(rows), section)
        metrics.append(trainer.step(rows, PolicyObjective(section, ROLLOUT)))
    return [{name: value for name, value in one.items() if name not in MACHINE_METRICS} for one in metrics]


@pytest.mark.parametrize(
    ("algorithm", "machine"),
    [
        ("grpo", {}),
        ("grpo", {"freeze_vision": True}),
        ("grpo", {"lora": LoraSection(rank=4, alpha=8)}),
        ("grpo", {"optimizer_bits": 8}),
        ("ppo", {}),
        ("ppo", {"optimizer_bits": 8}),
    ],
    ids=["whole", "frozen-vision", "lora", "eight-bits", "ppo", "ppo-in-eight-bits"],
)
def test_a_resumed_trainer_does_the_same_steps(algorithm, machine, open_trainer, prompts, tmp_path):
    torch.manual_seed(1)
    through = open_trainer(algorithm, **machine)
    train(through, prompts, algorithm, 0, 2)
    through.save_state(tmp_path)
    expected = train(through, prompts, algorithm, 2, 5)

    torch.manual_seed(2)
    resumed = open_trainer(algorithm, **machine)
    resumed.load_state(tmp_path)
    assert train(resumed, prompts, algorithm, 2, 5) == expected
    assert [one["learning_rate"] for one in expected] == pytest.approx([1e-3] * 3)
    for (name, first), second in zip(
        through.reader.module.named_parameters(), resumed.reader.module.parameters(), strict=True
    ):
        assert torch.equal(first, second), name


def test_moments_rest_in_eight_bits_but_those_of_embeddings_and_small_weights(open_trainer, prompts):
    own = open_trainer(optimizer_bits=8)
    train(own, prompts, "grpo", 0, 1)
    found = {
        name: own.optimizer.state[weight]["state1"].dtype
        for name, weight in own.vlm.model.named_parameters()
        if weight in own.optimizer.state
    }
    large = {name for name, weight in own.vlm.model.named_parameters() if weight.numel() >= 4096}
    embeddings = {name for name in found if "embed_tokens" in name}
    assert embeddings < large
    assert {name for name, dtype in found.items() if dtype == torch.uint8} == (large - embeddings) & found.keys()


def test_steps_with_moments_in_eight_bits_go_where_those_in_float32_go(open_trainer, prompts):
    """Three steps end within three hundredths of the way from each other."""
    moved = []
    for bits in (None, 8):
        own = open_trainer(optimizer_bits=bits)
        before = nn.utils.parameters_to_vector(own.vlm.model.parameters()).detach()
        torch.manual_seed(1)
        train(own, prompts, "grpo", 0, 3)
        moved.append(nn.utils.parameters_to_vector(own.vlm.model.parameters()).detach() - before)
    apart = torch.linalg.vector_norm(moved[1] - moved[0]) / torch.linalg.vector_norm(moved[0])
    assert 0 < apart < 0.03


@pytest.mark.parametrize("bits", [(None, 8), (8, None)], ids=["float32 in eight bits", "eight bits in float32"])
def test_a_state_in_other_bits_is_refused(open_trainer, prompts, tmp_path, bits):
    first, second = bits
    own = open_trainer(optimizer_bits=first)
    train(own, prompts, "grpo", 0, 1)
    own.save_state(tmp_path)
    with pytest.raises(ModelError, match=r"does not fit the model beside it, or trainer\.optimizer_bits"):
        open_trainer(optimizer_bits=second).load_state(tmp_path)


def test_dropout_makes_random_numbers_matter(open_trainer, prompts):
    """Or the test above would not see that they are restored."""
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(train(open_trainer(), prompts, "grpo", 0, 1))
    assert found[0] != found[1]


def checkpoints_of(step, trainer, log, every=100):
    return Checkpoints(step, {MODEL: trainer}, log, every=every)


def test_checkpoints_come_when_they_are_due(open_trainer, step):
    log = MetricsLog()
    checkpoints = checkpoints_of(step, open_trainer(), log, every=2)
    saved = []
    for number in range(5):
        log.add(number, {"loss": math.nan if number == 1 else 0.5})
        checkpoints.advance()
        saved.append(None if step.checkpoint is None else step.checkpoint.name)
    assert saved == [None, "000000", "000000", "000001", "000001"]

    again = Step.open(step.out, Plan("test", {}, 0, {}))
    log = MetricsLog()
    assert checkpoints_of(again, open_trainer(), log).done == 4
    assert [repr(row["value"]) for row in log.rows] == ["0.5", "nan", "0.5", "0.5"]


def test_save_every_takes_the_place_of_the_stage_s_own(open_trainer, step):
    step.requests = Requests(save_every=1)
    checkpoints = checkpoints_of(step, open_trainer(), MetricsLog())
    checkpoints.advance()
    assert step.checkpoint.name == "000000"


class NotANumber(SupervisedLoss):
    def __call__(self, _rows, logprobs, *_):
        return logprobs.logprobs_BT.sum() * math.nan, {}


def test_past_the_limit_training_stops_with_the_last_good_weights(open_trainer, prompts, step):
    trainer = open_trainer()
    checkpoints = checkpoints_of(step, trainer, MetricsLog())
    train(trainer, prompts, "grpo", 0, 1)
    checkpoints.advance()
    good = {name: weight.clone() for name, weight in trainer.vlm.model.state_dict().items()}
    trainer.step([TrainingRow(prompts[0], [8, 9], "error")], NotANumber())
    checkpoints.advance()
    assert step.tally.counts == {"steps_skipped": 1}
    trainer.step([TrainingRow(prompts[0], [8, 9], "error")], NotANumber())
    message = "optimizer step 3: 2 steps .* were skipped, max_skipped_steps is 1; lower the learning rate.*out/model"
    with pytest.raises(ModelError, match=message):
        checkpoints.advance()

    saved = load_model(step.out / MODEL).model.state_dict()
    assert saved.keys() == good.keys()
    assert all(torch.equal(saved[name], good[name]) for name in good)


def test_a_run_of_skipped_steps_alone_is_an_error_at_its_end(open_trainer, prompts, step):
    trainer = open_trainer()
    checkpoints = checkpoints_of(step, trainer, MetricsLog())
    checkpoints.finish()  # nothing was to be done
    trainer.step([TrainingRow(prompts[0], [8, 9], "error")], NotANumber())
    checkpoints.advance()
    with pytest.raises(ModelError, match="out/model: all 1 optimizer steps were skipped"):
        checkpoints.finish()
    train(trainer, prompts, "grpo", 0, 1)
    checkpoints.finish()


def test_earlier_training_does_not_count_as_a_step(tiny_vlm, copy_of, open_trainer, prompts, step):
    first = open_trainer()
    train(first, prompts, "grpo", 0, 2)
    first.save(step.out, step.out / MODEL)
    own = Trainer(copy_of(tiny_vlm), OptimizerSection(), temperature=1.0, resume_from=step.out)
    assert (own.steps_done, own.steps_of_run) == (2, 0)
    own.step([TrainingRow(prompts[0], [8, 9], "error")], NotANumber())
    with pytest.raises(ModelError, match="all 1 optimizer steps were skipped"):
        checkpoints_of(step, own, MetricsLog()).finish()


def test_rl_repair_without_one_finite_step_is_an_error(tmp_path, digits, base_dir):
    """A KL of zero times what is infinite in float32."""
    settings = [f"repair_rl.{name}" for name in (
        "objective.kl_coef=1e300", "problems=12", "text_only_tries=0", "iterations=1", "errors_per_iteration=3",
        "errors_per_step=3", "repairs_per_error=2", "c1=false",
    )]  # fmt: skip
    recipe = load_recipe("digits", [*settings, "audit.auditor=none", "sft.heldout_share=0"])
    with pytest.raises(ModelError, match="out/model: all 1 optimizer steps were skipped"):
        execute(RlRepair(recipe, digits / "problems_train.parquet", base_dir, base_dir), tmp_path / "out")


def test_a_stage_that_diverges_says_so(tmp_path, digits, base_dir):
    recipe = load_recipe("digits", ["sft.optimizer.learning_rate=1e30", "sft.optimizer.max_skipped_steps=2"])
    stage = SftRepair(recipe, digits / "repair_set.parquet", base_dir)
    with pytest.raises(ModelError, match="optimizer step 4: 3 steps without a finite loss and gradient were skipped"):
        execute(stage, tmp_path / "out")
    assert (tmp_path / "out" / MODEL / "model.safetensors").is_file()
    assert not (tmp_path / "out" / CHECKPOINTS).exists()
