"""One optimizer step at true dimensions: this project's with gates off and on beside TRL's and rows without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
from measured import Line, device, empty_gpu, peak_flops, peak_gib, seconds_of
from torch import Tensor
from training_step_case import TEMPERATURE, Case, Shape, make_case
from training_step_sides import Ours, Side
from true_sizes import TrueSize

from stages.model import head
from stages.model.footprint import training, training_pass
from stages.sections import LoraSection, TrainerSection

GROUP = 8


class Setting(NamedTuple):
    """A model, a group of `GROUP` responses, and how they are trained on, with gradient checkpointing."""

    maker: TrueSize
    shape: Shape
    rows: int
    """Of a micro-batch of TRL and of the unpadded row."""
    grouped: int
    """Of prefix grouping, whose plain head keeps the logits of all of them."""
    lora: LoraSection | None = None
    sides: Sequence[str] = ("TRL", "unpadded row", "prefix grouping", "ours, gates off", "ours, gates on")


def _trl(case: Case, own: Setting) -> Side:
    from training_step_trl import Trl  # of an extra, which a machine may lack

    return Trl(case, own.rows, checkpointing=True, compact_head=True, lora=own.lora)


def _unpadded_row(case: Case, own: Setting) -> Side:
    from training_step_one_row import UnpaddedRow  # of an extra, which a machine may lack

    return UnpaddedRow(case, own.rows, checkpointing=True)


def _prefix_grouping(case: Case, own: Setting) -> Side:
    from training_step_one_row import PrefixGrouping  # of an extra, which a machine may lack

    return PrefixGrouping(case, own.grouped, checkpointing=True)


SIDES: Mapping[str, Callable[[Case, Setting], Side]] = {
    "TRL": _trl,
    "unpadded row": _unpadded_row,
    "prefix grouping": _prefix_grouping,
    "ours, gates off": lambda case, own: Ours(case, GROUP, gated=False, checkpointing=True, lora=own.lora),
    "ours, gates on": lambda case, own: Ours(case, GROUP, gated=True, checkpointing=True, lora=own.lora),
}


def needs_gib(setting: Setting, side: str) -> float:
    """What the dry run's formulas say of a step, in GiB.

    They are this project's own; the others' passes are counted alike, with the rows that they repeat, and the logits
    that a plain head keeps.
    """
    size = setting.maker.footprint()
    section = _section(setting)
    prompt, response = setting.shape.prompt, setting.shape.longest
    tokens = {
        "TRL": setting.rows * (prompt + response),
        "unpadded row": setting.rows * (prompt + response),
        "prefix grouping": prompt + setting.grouped * response,
    }.get(side, prompt + GROUP * response)
    columns, rows = setting.shape.grid or (0, 0)
    images = setting.rows if side in ("TRL", "unpadded row") else 1
    seen = dataclasses.replace(size, patches=size.patches * images * columns * rows / tokens)
    rows_of_logits = {"unpadded row": setting.rows, "prefix grouping": setting.grouped}.get(side, 0)
    logits = rows_of_logits * response * size.vocabulary * 2 * 4
    at_work = training_pass(seen, section, "bfloat16", tokens)
    return (sum(training(size, section, "bfloat16")) + sum(at_work) + logits) / 2**30


def _section(setting: Setting) -> TrainerSection:
    return TrainerSection(gradient_checkpointing=True, lora=setting.lora)


def one_side(name: str, setting: Setting, side_name: str) -> Iterator[Line]:
    """Seconds of a step, response tokens a second, work a second and peak memory; then the old log-probs' pass."""
    with empty_gpu():
        case = _case(setting.shape, setting.maker)
    plain = GROUP * len(case.prompt.ids) + case.tokens
    with empty_gpu():
        side = SIDES[side_name](case, setting)
        seconds = seconds_of(side.step)
        yield Line(name, f"{side_name}: a step", seconds, "s")
        yield Line(name, f"{side_name}: response tokens", case.tokens / seconds, "tokens/s")
        # Forward and backward; the backward pass to frozen weights makes no gradient of them.
        work = (4 if setting.lora else 6) * setting.maker.footprint().weights * plain / seconds
        what = f"{side_name}: {4 if setting.lora else 6} x parameters x tokens of plain rows"
        yield Line(name, what, work / 1e12, "TFLOP/s")
        if peak := peak_flops():
            yield Line(name, f"{what}, over the card's peak", work / peak, "")
        yield Line(name, f"{side_name}: peak memory", peak_gib(), "GiB")
        yield Line(name, f"{side_name}: peak memory by the estimate", needs_gib(setting, side_name), "GiB")
        yield Line(name, f"{side_name}: old log-probs of the group", seconds_of(side.old_logprobs), "s")
        del side


@cache
def _case(shape: Shape, maker: TrueSize) -> Case:
    """One for all sides that are run here: a model reads its old log-probs."""
    return make_case(shape, GROUP, maker)


def ratios(lines: Sequence[Line]) -> list[Line]:
    """Every side's seconds a step over ours with gates on, where both were measured."""
    steps = {
        (line.part, line.what.removesuffix(": a step")): line.value for line in lines if line.what.endswith("step")
    }
    return [
        Line(name, f"{side}: seconds a step over ours with gates on", taken / steps[name, "ours, gates on"], "x")
        for (name, side), taken in steps.items()
        if side != "ours, gates on" and (name, "ours, gates on") in steps
    ]


class Head(NamedTuple):
    hidden: int
    vocabulary: int
    tokens: int
    """That are read."""
    chunks: Sequence[int]


def head_chunks(size: Head) -> Iterator[Line]:
    """The head's forward and backward at several numbers of chunks at once."""
    hidden_NH = torch.randn(size.tokens, size.hidden, device=device(), requires_grad=True)
    weight_VH = torch.randn(size.vocabulary, size.hidden, device=device(), requires_grad=True)
    targets_N = torch.randint(size.vocabulary, (size.tokens,), device=device())
    part, shipped = f"head, {size.tokens}", head.CHUNKS_AT_ONCE_ON_ACCELERATORS
    for chunks in size.chunks:
        head.CHUNKS_AT_ONCE_ON_ACCELERATORS = chunks
        with empty_gpu():
            taken = seconds_of(lambda: _head_pass(hidden_NH, weight_VH, targets_N))
            peak = peak_gib()
        mark = " (shipped)" if chunks == shipped else ""
        what = f"forward and backward in chunks of {chunks * head.TOKENS_PER_CHUNK}{mark}"
        yield Line(part, what, taken * 1e3, "ms")
        yield Line(part, f"{what}: peak", peak, "GiB")
    head.CHUNKS_AT_ONCE_ON_ACCELERATORS = shipped


def _head_pass(hidden_NH: Tensor, weight_VH: Tensor, targets_N: Tensor) -> None:
    hidden_NH.grad = weight_VH.grad = None
    with torch.autocast(hidden_NH.device.type, torch.bfloat16):
        logprobs_N, _ = head.token_logprobs(
            hidden_NH, weight_VH, None, targets_N, banned_ids=(), temperature=TEMPERATURE
        )
    logprobs_N.sum().backward()
