"""TRL's real trainer with gates: its step is the step of `policy_loss` on the same completions."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from data.digits import with_trl  # before transformers
from stages.core import difference_masks, group_advantages, policy_loss
from stages.model.loading import load_model

from datasets import Dataset  # isort: skip
from transformers import TrainerCallback  # isort: skip
from trl import GRPOTrainer  # isort: skip

TEMPERATURE = 0.7
GROUP = 8
ROOT = Path(__file__).parents[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", (ROOT / "stages" / "plugins" / "README.md").read_text(), re.S)


@dataclass
class Step:
    """A step of the example's trainer: the completions that it was given, and what came of them."""

    trainer: Any
    rows: list[dict[str, Any]]
    completions: dict[str, Any]
    gradients: dict[str, torch.Tensor]


class Gradients(TrainerCallback):
    """Those of the step, by parameter."""

    def on_pre_optimizer_step(self, *_, model, **__):
        self.by_name = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def step(base_dir, tmp_path_factory):
    """On two problems; the rollout function returns the same completions from here on."""
    trainer = with_trl.make_trainer(load_model(base_dir), problems=2)
    trainer.args.output_dir, trainer.args.max_grad_norm = str(tmp_path_factory.mktemp("trl")), 0
    own, found = trainer.rollout_func, {}

    def once(prompts, trainer):
        if not found:
            found.update(rows=trainer.rows, completions=own(prompts, trainer))
        return dict(found["completions"])

    trainer.rollout_func, gradients = once, Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return Step(trainer, gradients=gradients.by_name, **found)


def alone(model, processor, prompt_ids, ids, image):
    """Log-probs of one completion's tokens, unpadded, at the temperature that sampled it."""
    pixels = processor.image_processor(images=[image], return_tensors="pt")
    tokens = torch.tensor([[*prompt_ids, *ids]])
    types = (tokens == model.config.image_token_id).long()
    logits = model(input_ids=tokens, mm_token_type_ids=types, **pixels).logits[0, len(prompt_ids) - 1 : -1]
    return (logits / TEMPERATURE).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def test_the_step_is_that_of_policy_loss_on_the_same_rows(step, base_dir):
    vlm = load_model(base_dir)
    prompts, completions, gates = (step.completions[name] for name in ("prompt_ids", "completion_ids", "gate"))
    lines = [
        alone(vlm.model, vlm.processor, prompt, ids, row["images"][0])
        for row, prompt, ids in zip(step.rows, prompts, completions, strict=True)
    ]
    rewards = [
        float(f"The answer is {row['answer']}." in vlm.decode(ids))
        for row, ids in zip(step.rows, completions, strict=True)
    ]
    logprobs = pad_sequence(lines, batch_first=True)
    result = policy_loss(
        "grpo",
        logprobs_BT=logprobs,
        old_logprobs_BT=logprobs.detach(),
        advantages_B=torch.cat([group_advantages(rewards[n : n + GROUP]) for n in range(0, len(rewards), GROUP)]),
        response_mask_BT=pad_sequence([torch.ones(len(line)) for line in lines], batch_first=True),
        gate_BT=pad_sequence([torch.tensor(gate, dtype=torch.float32) for gate in gates], batch_first=True),
    )
    result.loss.backward()
    assert step.trainer.state.log_history[-1]["train_loss"] == pytest.approx(result.loss.item(), abs=1e-6)
    ours = {name: p.grad for name, p in vlm.model.named_parameters() if p.grad is not None}
    assert ours.keys() == step.gradients.keys()
    for name, gradient in ours.items():
        assert (step.gradients[name] - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_each_groups_errors_lie_beside_their_repairs(step):
    pairs = 0
    for start in range(0, len(step.rows), GROUP):
        gates = [list(gate) for gate in step.completions["gate"][start : start + GROUP]]
        ids = step.completions["completion_ids"][start : start + GROUP]
        edited = sum(not all(gate) for gate in gates)
        assert all(all(gate) for gate in gates[edited:])
        for error in range(0, edited - 1, 2):
            masks = difference_masks(ids[error], ids[error + 1])
            assert gates[error : error + 2] == [masks.error_T.tolist(), masks.repair_T.tolist()]
            pairs += 1
    assert pairs >= 3


LOSSES = {
    "grpo": ("grpo", {}),
    "bnpo": ("dapo", {"clip_high": 0.2}),
    "dapo": ("dapo", {"clip_high": 0.2}),
    "dr_grpo": ("dr_grpo", {"max_response_length": 512}),
    "cispo": ("cispo", {"clip_high": 1.1}),
    "sapo": ("sapo", {}),
}
"""TRL's `loss_type`, our name for it, and what of TRL's defaults is not ours; CISPO's bound is the test's."""


@pytest.mark.parametrize("loss_type", LOSSES)
def test_its_losses_of_gated_advantages_are_ours(step, loss_type, monkeypatch):
    name, hyper = LOSSES[loss_type]
    trainer, generator = step.trainer, torch.Generator().manual_seed(1)
    monkeypatch.setattr(trainer, "loss_type", loss_type)
    if loss_type == "cispo":
        monkeypatch.setattr(trainer, "epsilon_high", hyper["clip_high"])
    seen = {}
    own = trainer._get_per_token_logps_and_entropies

    def spy(*args, **options):
        seen["result"] = own(*args, **options)
        return seen["result"]

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", spy)
    batch = dict(trainer._buffered_inputs[0])
    shape = batch["completion_mask"].shape
    with torch.no_grad():
        trainer._compute_loss(trainer.model, batch)
    batch["old_per_token_logps"] = seen["result"][0] + 0.3 * torch.randn(shape, generator=generator)
    advantages, gate = torch.randn(shape[0], generator=generator), torch.rand(shape, generator=generator).round()
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, batch | {"advantages": advantages[:, None] * gate})
    result = policy_loss(
        name,
        logprobs_BT=seen["result"][0],
        old_logprobs_BT=batch["old_per_token_logps"],
        advantages_B=advantages,
        response_mask_BT=batch["completion_mask"],
        gate_BT=gate,
        **hyper,
    )
    torch.testing.assert_close(loss, result.loss)
    assert result.metrics["clip_fraction"] > 0.1 or loss_type == "sapo"


def test_the_gate_function_is_shown_what_trl_samples_itself(step, monkeypatch):
    shown = {}

    def halves(rows, completion_ids):
        shown.update(rows=rows, ids=completion_ids)
        return [[0.5] * len(ids) for ids in completion_ids]

    monkeypatch.setattr(step.trainer, "rollout_func", None)
    monkeypatch.setattr(step.trainer, "gate_func", halves)
    batch = step.trainer._generate_and_score_completions(step.rows)
    inside = batch["completion_mask"].bool()
    assert shown["rows"] is step.rows
    assert [row[mask].tolist() for row, mask in zip(batch["completion_ids"], inside, strict=True)] == shown["ids"]
    assert batch["advantages"][~inside].count_nonzero() == 0
    assert all(len(row[mask].unique()) == 1 for row, mask in zip(batch["advantages"], inside, strict=True))


def test_gates_of_ones_leave_the_advantages_that_trl_makes(step, monkeypatch):
    monkeypatch.setattr(step.trainer, "gate_func", lambda _rows, ids: [[1.0] * len(row) for row in ids])
    plain = GRPOTrainer._generate_and_score_completions(step.trainer, step.rows)
    gated = step.trainer._generate_and_score_completions(step.rows)
    assert plain["advantages"].abs().min() > 0.1
    assert torch.equal(gated["advantages"], plain["advantages"][:, None] * plain["completion_mask"])


def test_a_gate_has_a_weight_for_each_token(step, monkeypatch):
    monkeypatch.setattr(step.trainer, "gate_func", lambda _rows, ids: [[1.0] * (len(row) - 1) for row in ids])
    length = len(step.completions["completion_ids"][0])
    with pytest.raises(ValueError, match=f"a gate of {length - 1} weights for a completion of {length} tokens"):
        step.trainer._generate_and_score_completions(step.rows)


def test_a_ratio_of_whole_sequences_is_refused(step):
    args = step.trainer.args
    args.importance_sampling_level = "sequence"
    with pytest.raises(ValueError, match=r"importance_sampling_level is 'sequence'.*set it to 'token'"):
        with_trl.GatedGRPOTrainer(
            model=step.trainer.model,
            reward_funcs=lambda **_: [],
            args=args,
            train_dataset=step.trainer.train_dataset,
            gate_func=lambda _rows, _ids: [],
        )


def test_the_page_s_examples_have_at_most_forty_lines():
    assert len(EXAMPLES) == 2
    assert all(len(example.splitlines()) <= 40 for example in EXAMPLES)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page's example for TRL leaves behind; it writes to another folder here."""
    (code,) = [example for example in EXAMPLES if "trl" in example]
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        exec(code.replace("runs/trl", str(tmp_path_factory.mktemp("page"))), names)
    return names


def test_the_page_trains_errors_where_their_repairs_differ_and_right_completions_whole(page):
    (batch,) = page["trainer"]._buffered_inputs
    open_in_right, closed_in_errors = 0, 0
    for ids, mask, advantages in zip(
        batch["completion_ids"], batch["completion_mask"].bool(), batch["advantages"], strict=True
    ):
        text, signs = page["policy"].decode(ids[mask].tolist()), set(advantages[mask].sign().tolist())
        assert signs in ({1.0}, {-1.0}, {-1.0, 0.0}), text
        open_in_right += signs == {1.0}
        closed_in_errors += signs == {-1.0, 0.0}
    assert open_in_right >= 8
    assert closed_in_errors >= 8
    trained, base = (page[name].model.state_dict() for name in ("policy", "repairer"))
    assert any(not torch.equal(trained[name], base[name]) for name in base)


def test_the_page_s_gates_are_the_masks_of_the_annotated_repairs(page, digits):
    """Of most errors: of the four repairs that are drawn none may be right, or another right one is nearest."""
    rows = list(Dataset.from_parquet(str(digits / "repair_set.parquet")).select(range(16)))
    tokenizer = page["policy"].tokenizer
    errors, repairs = (
        [tokenizer.encode(row[side] + tokenizer.eos_token) for row in rows] for side in ("error", "repair")
    )
    gates = [list(gate) for gate in page["gates"](2 * rows, errors + repairs)]
    masks = [difference_masks(*pair).error_T.tolist() for pair in zip(errors, repairs, strict=True)]
    assert sum(gate == mask for gate, mask in zip(gates[: len(rows)], masks, strict=True)) >= 10
    assert all(all(gate) for gate in gates[len(rows) :])
