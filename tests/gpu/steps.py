"""One optimizer step at true dimensions: this project's with gates off and on beside TRL's and unpadded rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from measured import Line, empty_gpu, peak_gib, seconds_of
from torch import Tensor
from training_step_case import LEARNING_RATE, TEMPERATURE, Case, Shape, grpo_term, make_case
from training_step_sides import Ours, Side, Trl
from true_sizes import SIZES, TrueSize

from stages.model import head
from stages.model.batches import response_batch
from stages.training.trainer import TrainingRow

GROUP = 8
SHORT = Shape(prompt=1100, grid=(40, 25), shortest=260, longest=300)
LONG = Shape(prompt=1100, grid=(40, 25), shortest=1900, longest=2000)
PEAK_FLOPS = 989e12
"""Dense bfloat16 of an H100 or H200, by its data sheet."""


class Setting(NamedTuple):
    maker: TrueSize
    shape: Shape
    checkpointing: bool
    trl_rows: int
    """Of TRL's micro-batch."""


SETTINGS = {
    "3B, checkpointing, 300": Setting(TrueSize("3b", 36), SHORT, True, 8),
    "3B, checkpointing, 2000": Setting(TrueSize("3b", 36), LONG, True, 4),
    "7B, 8 of 28 layers, 300": Setting(TrueSize("7b", 8), SHORT, False, 4),
}
"""The 3B whole; as many of the 7B's layers as float32 master weights and their moments leave room for."""


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

    @torch.no_grad()
    def old_logprobs(self) -> list[Tensor]:
        self.model.eval()
        return [self._logprobs(row) for row in self.case.ungated_rows]

    def _backward(self, row: TrainingRow) -> float:
        loss = grpo_term(self._logprobs(row), row) / len(self.case.rows)
        loss.backward()
        return loss.item()

    def _logprobs(self, row: TrainingRow) -> Tensor:
        batch = response_batch(self.vlm, [row.prompt], [row.ids])
        with self.vlm.precision():
            hidden = self.model.base_model(**batch.inputs, use_cache=False).last_hidden_state
            logits_TV = self.model.get_output_embeddings()(hidden[0, -len(row.ids) - 1 : -1]).float() / TEMPERATURE
        ids_T = torch.tensor(row.ids, device=logits_TV.device)
        return logits_TV.log_softmax(-1).gather(-1, ids_T[:, None]).squeeze(-1)


SIDES: dict[str, Callable[[Case, Setting], Side]] = {
    "TRL": lambda case, own: Trl(case, own.trl_rows, checkpointing=own.checkpointing, compact_head=True),
    "unpadded rows": lambda case, own: Unpadded(case, checkpointing=own.checkpointing),
    "ours, gates off": lambda case, own: Ours(case, GROUP, gated=False, checkpointing=own.checkpointing),
    "ours, gates on": lambda case, own: Ours(case, GROUP, gated=True, checkpointing=own.checkpointing),
}


def one_side(name: str, side_name: str) -> Iterator[Line]:
    """Seconds of a step, response tokens a second, utilisation and peak memory; then the old log-probs' pass."""
    setting = SETTINGS[name]
    with empty_gpu():
        case = make_case(setting.shape, GROUP, setting.maker)
    plain = GROUP * len(case.prompt.ids) + case.tokens
    with empty_gpu():
        side = SIDES[side_name](case, setting)
        parameters = sum(p.numel() for p in side.model.parameters())
        seconds = seconds_of(side.step)
        yield Line(name, f"{side_name}: a step", seconds, "s")
        yield Line(name, f"{side_name}: response tokens", case.tokens / seconds, "tokens/s")
        utilisation = 6 * parameters * plain / seconds / PEAK_FLOPS
        yield Line(name, f"{side_name}: 6 x parameters x tokens of plain rows, over the card's peak", utilisation, "")
        yield Line(name, f"{side_name}: peak memory", peak_gib(), "GiB")
        yield Line(name, f"{side_name}: old log-probs of the group", seconds_of(side.old_logprobs), "s")


def ratios(lines: Sequence[Line]) -> list[Line]:
    """Each side's step beside TRL's, where both were measured."""
    steps = {(line.part, line.what.removesuffix(": a step")): line.value for line in lines if line.unit == "s"}
    return [
        Line(name, f"TRL's seconds / {side}", steps[name, "TRL"] / steps[name, side], "x")
        for name in SETTINGS
        for side in SIDES
        if side != "TRL" and {(name, "TRL"), (name, side)} <= steps.keys()
    ]


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
