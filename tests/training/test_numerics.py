"""In bfloat16 the first optimizer step sees the old log-probs of its own numerics: GSPO's bounds are 3e-4."""

from pathlib import Path
from statistics import median

import pytest
import torch

from stages.artifacts.ledger import CostLedger
from stages.audit.opening import open_auditor
from stages.engines.loading import embedded_engine, open_engine, open_model, recipe_sampling
from stages.engines.protocol import ScoreRequest
from stages.model.batches import encode_prompt
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.repair.answering import Answerer
from stages.repair.repairs import Repairer
from stages.s4_build_masks.group_builder import GroupBuilder
from stages.sections import LoraSection, ObjectiveSection, OptimizerSection, TrainerSection
from stages.seeds import Purpose
from stages.training.groups import optimization_group, with_token_advantages
from stages.training.heldout import annotated_draft, with_end
from stages.training.losses import PolicyObjective
from stages.training.metrics import MetricsLog
from stages.training.preferences import PreferenceObjective
from stages.training.repair_loop import RepairLoop
from stages.training.trainer import Trainer, TrainingRow

RECIPE = load_recipe(
    "digits",
    [
        "model.dtype=bfloat16",
        "engine.rows_per_batch=64",
        "audit.auditor=none",
        "masks.candidates=3",
        "train.objective.algorithm=gspo",
        "trainer.tokens_per_micro_batch=400",
        "repair_rl.objective.algorithm=gspo",
        "repair_rl.repairs_per_error=4",
        "repair_rl.c1=false",
    ],
)

GSPO_BOUND = 3e-4


class Recording:
    """A loss function that keeps log s_i, the mean log-ratio of each sequence, of the first step."""

    def __init__(self, loss_function):
        self.loss_function = loss_function
        self.has_kl = loss_function.has_kl
        self.log_s: list[float] = []

    def reading(self, row):
        return self.loss_function.reading(row)

    def __call__(self, rows, logprobs, reference_BT, totals):
        for row, new_T in zip(rows, logprobs.logprobs_BT.detach(), strict=True):
            self.log_s.append((new_T[: len(row.ids)] - torch.tensor(row.old_logprobs_T)).mean().item())
        return self.loss_function(rows, logprobs, reference_BT, totals)

    @property
    def drift(self):
        return sum(map(abs, self.log_s)) / len(self.log_s)


@pytest.fixture
def engine_of(base_dir):
    """A function: the base policy as a stage opens it."""
    return lambda **options: open_engine(base_dir, RECIPE, **options)


@pytest.fixture
def trained_engine(base_dir):
    """The base policy as it is trained, which samples in between."""
    return embedded_engine(open_model(base_dir, RECIPE, master_weights=True), RECIPE)


TRAINED = {"whole": {}, "adapters": {"lora": LoraSection()}, "text": {"freeze_vision": True}}


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED)
def test_build_masks_and_train_policy_agree(trained, base_dir, engine_of, repair_problems, math_reward, step):
    recipe = RECIPE.model_copy(update={"trainer": RECIPE.trainer.model_copy(update=trained)})
    engine = engine_of(as_trained=True)
    policy = Answerer(engine, RECIPE.prompt, math_reward, CostLedger())
    repairer = Repairer(engine_of(), RECIPE.prompt, math_reward, CostLedger())
    problems = {problem.problem_id: problem for problem in repair_problems[:12]}
    builder = GroupBuilder(RECIPE, problems, repairer, policy, open_auditor(RECIPE, policy), step)
    rollouts = [
        {"problem_id": name, "sample": sample, "text": problem.extra[side], "finish_reason": "stop",
         "ids": with_end(engine.vlm, problem.extra[side]), "reward": reward, "sampler_logprobs": []}
        for name, problem in problems.items()
        for sample, (side, reward) in enumerate([("repair", 1.0), ("error", 0.0)])
    ]  # fmt: skip
    groups = builder.build(rollouts, recipe_sampling(RECIPE, Purpose.CANDIDATES, 0)).groups
    by_problem = [[row for row in groups if row["problem_id"] == name] for name in problems]
    chosen = [t for rows in by_problem for t in optimization_group(rows, RECIPE.train, RECIPE.rollout)]
    assert len(chosen) >= 12

    def first_step(old_logprobs):
        own = open_model(base_dir, recipe, master_weights=True)
        rows = [
            TrainingRow(
                encode_prompt(own, policy.prompt(problems[t.row["problem_id"]])),
                t.row["ids"], t.row["role"], t.advantage, t.gate_T, old_T,
            )
            for t, old_T in zip(chosen, old_logprobs, strict=True)
        ]  # fmt: skip
        loss_function = Recording(PolicyObjective(RECIPE.train.objective, RECIPE.rollout))
        trainer = Trainer(own, RECIPE.train.optimizer, temperature=RECIPE.rollout.temperature, machine=recipe.trainer)
        trainer.step(rows, loss_function)
        return loss_function

    recording = first_step([t.row["old_logprobs"] for t in chosen])
    assert len(recording.log_s) == len(chosen)
    assert recording.drift < GSPO_BOUND
    # Rows that are packed in other company may round otherwise; most do not.
    assert median(map(abs, recording.log_s)) < GSPO_BOUND / 10
    # What weights in bfloat16 would have given instead: how large rounding is differs between processors.
    requests = [ScoreRequest(policy.prompt(problems[t.row["problem_id"]]), t.row["ids"]) for t in chosen]
    scores = engine_of().score(requests, temperature=RECIPE.rollout.temperature)
    other = first_step([score.logprobs for score in scores])
    assert other.drift > 3 * recording.drift


def test_repair_rl_s_first_step_agrees_with_itself(engine_of, trained_engine, repair_problems, math_reward, step):
    engine = trained_engine
    policy = Answerer(engine_of(), RECIPE.prompt, math_reward, CostLedger())
    repairer = Repairer(engine, RECIPE.prompt, math_reward, CostLedger())
    trainer = Trainer(
        engine.vlm, RECIPE.repair_rl.optimizer, temperature=RECIPE.rollout.temperature, machine=RECIPE.trainer
    )
    loop = RepairLoop(RECIPE, repairer, open_auditor(RECIPE, policy), step, trainer, MetricsLog())
    loop.objective = Recording(loop.objective)
    loop.iterate(0, [annotated_draft(engine.vlm, problem) for problem in repair_problems[:8]])
    metrics = {row["metric"]: row["value"] for row in loop.log.rows if row["step"] == 1}
    assert loop.trainer.steps_done == 1
    assert len(loop.objective.log_s) >= 8
    assert loop.objective.drift < GSPO_BOUND
    assert metrics["clip_fraction/repair"] < 0.1
    # Sampling rounds otherwise: token by token, and each row padded.
    assert 1e-5 < metrics["mismatch_mean"] < 0.01 < metrics["mismatch_max"] < 1
    assert 0.99 < metrics["effective_sample_size"] < 1


class Deltas(Recording):
    """Keeps the largest log-ratio of the tokens that each pass reads."""

    def __init__(self, loss_function):
        super().__init__(loss_function)
        self.largest = []

    def __call__(self, rows, logprobs, reference_BT, totals):
        for row, new_T, read_T in zip(rows, logprobs.logprobs_BT.detach(), logprobs.read_BT, strict=True):
            delta_T = (new_T[: len(row.ids)] - torch.tensor(row.old_logprobs_T))[read_T[: len(row.ids)]]
            self.largest.append(delta_T.abs().max().item())
        return self.loss_function(rows, logprobs, reference_BT, totals)


@pytest.fixture(scope="module")
def rows(tiny_vlm, repair_problems, recipe):
    """Pairs of six problems, a third of their tokens marked."""
    found = []
    for problem in repair_problems[:6]:
        style = recipe.prompt
        prompt = encode_prompt(tiny_vlm, policy_prompt(tiny_vlm.processor, style, problem))
        for role, advantage in (("error", -1.0), ("repair", 1.0)):
            ids = with_end(tiny_vlm, problem.extra[role])
            gate_T = [float(token % 3 == 0) for token in range(len(ids))]
            found.append(TrainingRow(prompt, ids, role, advantage, gate_T, [-1.0] * len(ids)))
    return found


def objective(algorithm):
    section = ObjectiveSection(algorithm=algorithm)
    return PreferenceObjective(section) if algorithm == "dpo" else PolicyObjective(section, RECIPE.rollout)


@pytest.fixture
def trainer_of(tiny_vlm, copy_of):
    """A function: a trainer of the random model, packed rows or plain ones, several micro-batches a step."""

    def make(*, packed=True, critic=False):
        trainer = Trainer(
            copy_of(tiny_vlm),
            OptimizerSection(learning_rate=1e-3),
            temperature=0.7,
            machine=TrainerSection(tokens_per_micro_batch=300),
            critic_from=Path("nowhere") if critic else None,
        )
        trainer.reader.packed = packed
        return trainer

    return make


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("algorithm", ["grpo", "gspo", "dapo", "cispo", "ppo", "dpo"])
def test_a_step_s_old_log_probs_are_those_of_its_own_passes(trainer_of, rows, algorithm, packed):
    """To the bit, of every token that the step reads; the others keep what they have."""
    trainer, loss_function = trainer_of(packed=packed, critic=algorithm == "ppo"), Deltas(objective(algorithm))
    own = trainer.with_old_logprobs(rows, loss_function)
    for row, before in zip(own, rows, strict=True):
        unread = sorted(set(range(len(row.ids))) - set(loss_function.reading(row).tokens_read.tolist()))
        assert [row.old_logprobs_T[token] for token in unread] == [before.old_logprobs_T[token] for token in unread]
    own = with_token_advantages(own, ObjectiveSection(algorithm=algorithm))
    assert len(trainer.passes([loss_function.reading(row) for row in own])) > 1
    first = trainer.step(own, loss_function)
    assert set(loss_function.largest) == {0.0}
    if algorithm != "dpo":
        assert {first[f"ratio_max/{role}"] for role in ("error", "repair")} == {1.0}
        assert {first[f"clip_fraction/{role}"] for role in ("error", "repair")} == {0.0}
    # The next step's are still those of before the first.
    loss_function.largest.clear()
    trainer.step(own, loss_function)
    assert max(loss_function.largest) > 1e-2


@pytest.mark.usefixtures("rounding")
def test_read_in_other_company_they_are_others(trainer_of, rows):
    """Row by row, as an engine may; or every token, where the step reads some."""
    for parts in ([[row] for row in rows], [rows]):
        trainer, loss_function = trainer_of(), Deltas(objective("grpo"))
        trainer.step([scored for part in parts for scored in trainer.with_old_logprobs(part)], loss_function)
        assert max(loss_function.largest) > GSPO_BOUND


@pytest.mark.usefixtures("rounding")
def test_every_step_of_repair_rl_begins_at_a_ratio_of_one(trained_engine, repair_problems, math_reward, step):
    """Until the first has changed the weights: two steps on the repairs of one iteration."""
    recipe = RECIPE.model_copy(update={"repair_rl": RECIPE.repair_rl.model_copy(update={"errors_per_step": 4})})
    engine = trained_engine
    policy = Answerer(engine, recipe.prompt, math_reward, CostLedger())
    optimizer = recipe.repair_rl.optimizer.model_copy(update={"learning_rate": 1e-12})
    trainer = Trainer(engine.vlm, optimizer, temperature=recipe.rollout.temperature, machine=recipe.trainer)
    repairer = Repairer(engine, recipe.prompt, math_reward, CostLedger())
    loop = RepairLoop(recipe, repairer, open_auditor(recipe, policy), step, trainer, MetricsLog())
    loop.objective = Deltas(loop.objective)
    loop.iterate(0, [annotated_draft(engine.vlm, problem) for problem in repair_problems[:8]])
    assert loop.trainer.steps_done == 2
    assert max(loop.objective.largest) < 1e-4
