"""Optimizer steps of the digits base, run by the tests in one process and in two."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stages.artifacts.problems import ProblemSet
from stages.engines.protocol import Request, Sampling
from stages.engines.transformers_engine import TransformersEngine
from stages.model.batches import encode_prompt
from stages.model.loading import load_model
from stages.model.prompts import policy_prompt
from stages.recipe import load_recipe
from stages.runtime import processes
from stages.sections import LoraSection, ObjectiveSection, OptimizerSection, RolloutSection, TrainerSection
from stages.training.groups import with_token_advantages
from stages.training.losses import PolicyObjective
from stages.training.preferences import PreferenceObjective
from stages.training.trainer import Trainer, TrainingRow

DIGITS = Path(__file__).parents[2] / "data" / "digits"
ROLLOUT = RolloutSection(max_new_tokens=32, temperature=0.7)


def prompts(vlm):
    """Of problems with one image and, every third, none."""
    problems = ProblemSet(DIGITS / "problems_test.parquet")
    style = load_recipe("digits").prompt
    return [
        policy_prompt(vlm.processor, style, replace(p, images=()) if index % 3 == 2 else p)
        for index, p in enumerate(problems.many(problems.ids[:6]))
    ]


def training_rows(vlm):
    """Five groups of unequal lengths, with gates."""
    rng = np.random.default_rng(7)
    rows = []
    for index, prompt in enumerate(prompts(vlm)[:5]):
        encoded = encode_prompt(vlm, prompt)
        for role, advantage in (("error", -0.7), ("repair", 0.9)):
            length = int(rng.integers(3, 20))
            ids = rng.integers(7, len(vlm.tokenizer), length).tolist()
            gate = (rng.random(length) < 0.5).astype(float)
            gate[-1] = 1.0
            old = rng.normal(-6, 0.1, length)
            rows.append(TrainingRow(encoded, ids, role, advantage + 0.1 * index, gate.tolist(), old.tolist()))
    return rows


def steps(
    model,
    out,
    first,
    last,
    *,
    resume_from=None,
    lora=None,
    kl_coef=0.0,
    tokens=150,
    checkpointing=False,
    algorithm="dapo",
    pairs=False,
    rounded=False,
):
    """Do optimizer steps `first` to `last` on rows in another order each, and sample after each of them; save.

    Several processes are interrupted after the first step, and go on from its state. With `rounded` what is not trained
    rests in bfloat16.
    """
    precision = {"dtype": "bfloat16", "trained": "none"} if rounded else {}
    machine = TrainerSection(tokens_per_micro_batch=tokens, lora=lora, gradient_checkpointing=checkpointing)

    def open_trainer():
        return Trainer(
            load_model(model, **precision),
            OptimizerSection(learning_rate=1e-3, weight_decay=0.1),
            temperature=ROLLOUT.temperature,
            machine=machine,
            reference=load_model(model) if kl_coef and lora is None else None,
            resume_from=resume_from,
            critic_from=(resume_from or Path("nowhere")) if algorithm == "ppo" else None,
            critic_rate=3.0,
        )

    trainer = open_trainer()
    section = ObjectiveSection(algorithm=algorithm, clip_high=1e9, kl_coef=kl_coef)
    objective = PolicyObjective(section, ROLLOUT)
    rows = training_rows(trainer.vlm)
    if algorithm == "ppo":
        trainer.start_critic([row.advantage for row in rows])
        # Rows of one prompt alone are closed, for every process to have some with nothing but values to learn.
        rows = [replace(row, gate_T=[0.0] * len(row.ids)) for row in rows[:2]] + trainer.with_old_logprobs(rows[2:])
        rows = [replace(row, values_T=row.values_T or [0.1] * len(row.ids)) for row in rows]
    metrics, answers = [], []
    for step in range(first, last):
        if pairs:
            objective = PreferenceObjective(ObjectiveSection(algorithm="dpo", beta=1.0))
            chosen = [
                2 * i + side for i in np.random.default_rng(step).permutation(5)[: 3 + step % 3] for side in (0, 1)
            ]
        else:
            chosen = np.random.default_rng(step).permutation(len(rows))[: 4 + 2 * (step % 3)]
        metrics.append(trainer.step(with_token_advantages([rows[i] for i in chosen], section), objective))
        answers.append(sample(trainer))
        if step == first and processes.count() > 1:
            if processes.is_main():
                (out / "state").mkdir(parents=True)
            processes.wait()
            trainer.save_state(out / "state")
            processes.wait()
            trainer = open_trainer()
            trainer.load_state(out / "state")
    trainer.save(out, out / "model")
    return metrics, answers


def sample(trainer):
    """Greedy answers, in more batches at one process than at another, while the model may lie in shards."""
    engine = TransformersEngine(trainer.vlm, rows_per_batch=2)
    requests = [Request(prompt) for prompt in prompts(trainer.vlm)[:5]]
    with trainer.parallel.whole():
        return [group[0].ids for group in engine.generate(requests, Sampling(12, temperature=0))]


def shard_on_cpu():
    """accelerate itself takes FSDP on accelerators only; its plugin works on any device."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType

    state = Accelerator(cpu=True).state
    state.distributed_type = DistributedType.FSDP
    # Every further Accelerator takes the type from here.
    PartialState().distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        reshard_after_forward=True,
    )
    assert Accelerator(device_placement=False).distributed_type == DistributedType.FSDP


def zero_on_cpu():
    """DeepSpeed knows CPUs, the launcher's configuration does not; small weights would not be cut at all."""
    from accelerate import Accelerator, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    PartialState(backend="gloo")
    config = Accelerator().state.deepspeed_plugin.deepspeed_config
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    unset_hf_deepspeed_config()


def main(mode, out):
    """Steps 0 to 2, saved, then step 3 in what was loaded again; where weights are rounded, step 0 and then step 3."""
    if mode.startswith("fsdp2"):
        shard_on_cpu()
    if mode.startswith("zero3"):
        zero_on_cpu()
    options = {
        "": {},
        "dpo": {"pairs": True},
        "kl": {"kl_coef": 0.5, "checkpointing": True},
        "ppo": {"algorithm": "ppo"},
        "lora": {"kl_coef": 0.5, "lora": LoraSection(rank=4, alpha=8)},
        "rounded": {"kl_coef": 0.5, "lora": LoraSection(rank=4, alpha=8), "rounded": True},
    }[mode.partition("-")[2]]
    out = Path(out)
    last = 1 if options.get("rounded") else 3
    metrics, answers = steps(DIGITS / "base", out / "first", 0, last, **options)
    processes.wait()
    more = steps(out / "first" / "model", out / "second", 3, 4, resume_from=out / "first", **options)
    if processes.is_main():
        told = {"metrics": metrics + more[0], "answers": answers + more[1], "processes": processes.count()}
        torch.save(told, out / "told.pt")
    processes.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
