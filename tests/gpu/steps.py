"""One optimizer step at true dimensions: this project's with gates off and on beside TRL's and unpadded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from torch import Tensor
from training_step_case import LEARNING_RATE, TEMPERATURE, Case, Shape, grpo_term, make_case
from training_step_sides import Ours, Side, Trl
from true_sizes import SIZES, TrueSize

from stages.model import head
from stages.model.batches import response_batch
from stages.training.trainer import Trainer, TrainingRow

GROUP = 8
SHORT = Shape(prompt=1100, grid=(40, 25), shortest=260, longest=300)
LONG = Shape(prompt=1100, grid=(40, 25), shortest=1900, longest=2000)
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200, by its data sheet."""


class Setting(NamedTuple):
    name: str
    maker: TrueSize
    shape: Shape
    sides: Mapping[str, Callable[[Case], Side]]


class Unpadded:
    """One row at a time without padding, log-probs from the logits of its response alone, no banned ids."""

    def __init__(self, case: Case, *, checkpointing: bool) -> None:
        self.case, self.vlm = case, case.vlm()
        self.model = self.vlm.model
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)

    def step(self) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        loss = sum(self._backward(row) for row in self.case.ungated_rows)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.case.max_grad_norm)
        self.optimizer.step()
        return loss

    def _backward(self, row: TrainingRow) -> float:
        batch = response_batch(self.vlm, [row.prompt], [row.ids])
        with self.vlm.precision():
            hidden = self.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
            logits_TV = self.model.get_output_embeddings()(hidden[0, -len(row.ids) - 1 : -1]).float() / TEMPERATURE
        ids_T = torch.tensor(row.ids, device=logits_TV.device)
        logprobs_T = logits_TV.log_softmax(-1).gather(-1, ids_T[:, None]).squeeze(-1)
        loss = grpo_term(logprobs_T, row) / len(self.case.rows)
        loss.backward()
        return loss.item()


def _sides(*, checkpointing: bool, trl_rows: int) -> dict[str, Callable[[Case], Side]]:
    return {
        "TRL": lambda case: Trl(case, trl_rows, checkpointing=checkpointing, compact_head=True),
        "unpadded rows": partial(Unpadded, checkpointing=checkpointing),
        "ours, gates off": lambda case: Ours(case, GROUP, gated=False, checkpointing=checkpointing),
        "ours, gates on": lambda case: Ours(case, GROUP, gated=True, checkpointing=checkpointing),
    }


def settings() -> list[Setting]:
    """The 3B whole, with checkpointing; 12 of its 36 layers without; as many of the 7B's as float32 masters leave."""
    return [
        Setting("3B, 12 of 36 layers, 300", TrueSize("3b", 12), SHORT, _sides(checkpointing=False, trl_rows=8)),
        Setting("3B, checkpointing, 300", TrueSize("3b", 36), SHORT, _sides(checkpointing=True, trl_rows=8)),
        Setting("3B, checkpointing, 2000", TrueSize("3b", 36), LONG, _sides(checkpointing=True, trl_rows=2)),
        Setting("7B, 8 of 28 layers, 300", TrueSize("7b", 8), SHORT, _sides(checkpointing=False, trl_rows=4)),
    ]


def steps(setting: Setting) -> Iterator[Line]:
    """Seconds, tokens a second, utilisation and peak memory of each side; TRL's step over ours."""
    with empty_gpu():
        case = make_case(setting.shape, GROUP, setting.maker)
    plain = GROUP * len(case.prompt.ids) + case.tokens
    seconds: dict[str, float] = {}
    for name, make in setting.sides.items():
        with empty_gpu():
            seconds[name], peak, parameters = _timed(make, case)
        part = setting.name
        yield Line(part, f"{name}: a step", seconds[name], "s")
        yield Line(part, f"{name}: response tokens", case.tokens / seconds[name], "tokens/s")
        yield Line(part, f"{name}: FLOPs of plain rows (6 N tokens) over the card's peak",
                   6 * parameters * plain / seconds[name] / PEAK_FLOPS, "")  # fmt: skip
        yield Line(part, f"{name}: peak memory", peak, "GiB")
        if name.startswith("ours"):
            yield Line(part, f"TRL's seconds / {name}", seconds["TRL"] / seconds[name], "x")
    with empty_gpu():
        yield from _old_logprobs(setting, case)


def _timed(make: Callable[[Case], Side], case: Case) -> tuple[float, float, int]:
    """Median seconds, peak GiB, and the text model's parameters."""
    side = make(case)
    seconds = seconds_of(side.step)
    text = side.model.module if hasattr(side.model, "module") else side.model
    return seconds, peak_gib(), sum(p.numel() for p in text.get_decoder().parameters())


def _old_logprobs(setting: Setting, case: Case) -> Iterator[Line]:
    """The pass that makes old log-probs, which every method but a one-step one pays."""
    side = Ours(case, GROUP, gated=False)
    trainer: Trainer = side.trainer
    yield Line(setting.name, "ours: old log-probs of the group",
               seconds_of(lambda: trainer.with_old_logprobs(case.ungated_rows)), "s")  # fmt: skip


def head_chunks() -> Iterator[Line]:
    """The head's forward and backward at several chunks, H=2048, V=151,936, 2,400 tokens read."""
    size = SIZES["3b"].text
    hidden_NH = torch.randn(2400, size["hidden_size"], device="cuda", requires_grad=True)
    weight_VH = torch.randn(size["vocab_size"], size["hidden_size"], device="cuda", requires_grad=True)
    targets_N = torch.randint(size["vocab_size"], (2400,), device="cuda")
    shipped = head.CHUNKS_AT_ONCE_ON_ACCELERATORS
    for chunks in (1, 4, 8, 16, 32):
        head.CHUNKS_AT_ONCE_ON_ACCELERATORS = chunks
        with empty_gpu():
            taken = seconds_of(lambda: _head_pass(hidden_NH, weight_VH, targets_N))
            peak = peak_gib()
        mark = " (shipped)" if chunks == shipped else ""
        what = f"forward and backward in chunks of {chunks * head.TOKENS_PER_CHUNK}{mark}"
        yield Line("head, 2400", what, taken * 1e3, "ms")
        yield Line("head, 2400", f"{what}: peak", peak, "GiB")
    head.CHUNKS_AT_ONCE_ON_ACCELERATORS = shipped


def _head_pass(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> None:
    hidden_NH.grad = weight_VH.grad = None
    with torch.autocast("cuda", torch.bfloat16):
        logprobs_N, _ = head.token_logprobs(
            hidden_NH, weight_VH, None, targets_N, banned_ids=(), temperature=TEMPERATURE
        )
    logprobs_N.sum().backward()
