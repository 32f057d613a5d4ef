"""Peak memory and time of the token log-probs' loss, forward and backward: full logits, TRL's head, this project's.

    python tests/bench/loss_memory.py [--tokens 1200] [--hidden 896] [--vocabulary 151936] [--repeats 3] [--out DIR]

Needs trl==1.16.0; runs on the CPU, under Linux. Each side is a fresh process that has the hidden states and the head's
weight already, in float32; its peak memory is the growth of the resident size. The two gradients are in it; they are
the same for all. Gates are open on 8% of the tokens. Objectives with token ratios read those alone; a sequence ratio
(GSPO) reads every token and has a graph for the open ones.
"""

from __future__ import annotations

import stages.model  # noqa: F401, before transformers  # isort: skip

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import linear
from training_step_memory import RETURN_WHAT_IS_FREED, fresh_process, limit_memory, peak_growth
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from stages.model.head import token_logprobs

OPEN_SHARE = 0.08
TEMPERATURE = 0.7
TOLERANCE = 1e-5
WIDTH = 110


class Work(NamedTuple):
    """A loss's inputs; N tokens, H hidden size, V vocabulary."""

    hidden_NH: Tensor
    weight_VH: Tensor
    targets_N: Tensor
    gates_N: Tensor


def full_logits(work: Work) -> Tensor:
    """All logits and their log-softmax in float32."""
    logits_NV = linear(work.hidden_NH, work.weight_VH).float() / TEMPERATURE
    logprobs_N = logits_NV.log_softmax(-1).gather(-1, work.targets_N[:, None]).squeeze(-1)
    return -(work.gates_N * logprobs_N).sum()


def trl_head(work: Work) -> Tensor:
    """What TRL's `GRPOTrainer` calls, on the response tokens alone."""
    settings = (TEMPERATURE, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("log_probs", "entropy"))
    logprobs_N, *_ = ChunkedLogProbFunction.apply(work.hidden_NH, work.weight_VH, None, work.targets_N, *settings)
    return -(work.gates_N * logprobs_N).sum()


def every_token(work: Work) -> Tensor:
    """Gates are not looked at: the plain algorithm."""
    return -(work.gates_N * _own(work, work.hidden_NH, work.targets_N)).sum()


def sequence_ratio(work: Work) -> Tensor:
    """Every token is read, the open ones with a graph."""
    open_N = work.gates_N > 0
    with torch.no_grad():
        _own(work, work.hidden_NH[~open_N], work.targets_N[~open_N])
    return open_tokens(work)


def open_tokens(work: Work) -> Tensor:
    """Tokens with a closed gate are not read."""
    open_N = work.gates_N > 0
    return -(work.gates_N[open_N] * _own(work, work.hidden_NH[open_N], work.targets_N[open_N])).sum()


SIDES: Mapping[str, tuple[str, Callable[[Work], Tensor]]] = {
    "full_logits": ("full logits", full_logits),
    "trl_head": ("TRL's head", trl_head),
    "every_token": ("own, gates off", every_token),
    "sequence_ratio": ("own, gates on, sequence ratio", sequence_ratio),
    "open_tokens": ("own, gates on, token ratios", open_tokens),
}


def main() -> None:
    options = _options()
    if options.side:
        print(json.dumps(_measure(options)))
        return
    console = Console(width=max(Console().width, WIDTH))
    report = {
        "tokens": options.tokens,
        "hidden": options.hidden,
        "vocabulary": options.vocabulary,
        "open_share": OPEN_SHARE,
        "versions": {name: version(name) for name in ("torch", "trl")},
        "threads": torch.get_num_threads(),
        "gradient_bytes": 4 * options.hidden * (options.tokens + options.vocabulary),
        "largest_difference": _check(options.hidden),
        "sides": {name: fresh_process([*sys.argv, "--side", name], RETURN_WHAT_IS_FREED) for name in SIDES},
    }
    console.print(_table(report))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "loss_memory.json").write_text(json.dumps(report, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1200)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _make_work(tokens: int, hidden: int, vocabulary: int) -> Work:
    rng = torch.Generator().manual_seed(0)
    gates_N = torch.zeros(tokens)
    gates_N[torch.randperm(tokens, generator=rng)[: round(OPEN_SHARE * tokens)]] = 1.0
    return Work(
        torch.randn(tokens, hidden, generator=rng).requires_grad_(),
        torch.randn(vocabulary, hidden, generator=rng).mul_(hidden**-0.5).requires_grad_(),
        torch.randint(vocabulary, (tokens,), generator=rng),
        gates_N,
    )


def _own(work: Work, hidden_NH: Tensor, targets_N: Tensor) -> Tensor:
    return token_logprobs(hidden_NH, work.weight_VH, None, targets_N, banned_ids=(), temperature=TEMPERATURE)[0]


def _run(loss_function: Callable[[Work], Tensor], work: Work) -> None:
    work.hidden_NH.grad = work.weight_VH.grad = None
    loss_function(work).backward()


def _check(hidden: int) -> float:
    """Largest relative difference to the full logits' gradients, on a small vocabulary; AssertionError above 1e-5."""
    differences = []
    for _, loss_function in SIDES.values():
        expected, work = (_make_work(100, hidden, 1000) for _ in range(2))
        _run(full_logits, expected)
        _run(loss_function, work)
        for grad, other in ((work.hidden_NH, expected.hidden_NH), (work.weight_VH, expected.weight_VH)):
            differences.append(((grad.grad - other.grad).norm() / other.grad.norm()).item())
    assert max(differences) <= TOLERANCE, f"gradients differ by {max(differences):.2e}"
    return max(differences)


def _measure(options: argparse.Namespace) -> dict[str, float]:
    _, loss_function = SIDES[options.side]
    work = _make_work(options.tokens, options.hidden, options.vocabulary)
    limit_memory()
    peak = peak_growth(lambda: _run(loss_function, work))
    seconds = []
    for _ in range(options.repeats):
        started = time.perf_counter()
        _run(loss_function, work)
        seconds.append(time.perf_counter() - started)
    return {"peak_bytes": peak, "median_seconds": median(seconds)}


def _table(report: Mapping[str, Any]) -> Table:
    title = f"{report['tokens']} tokens, hidden {report['hidden']}, vocabulary {report['vocabulary']}, float32"
    table = Table("", title=title)
    for column in ("peak MiB", "without gradients", "full logits' / it", "median s", "full logits' / it"):
        table.add_column(column, justify="right")
    full = report["sides"]["full_logits"]
    for name, (label, _) in SIDES.items():
        side = report["sides"][name]
        if side is None:
            table.add_row(label, "does not fit")
            continue
        table.add_row(
            label,
            f"{side['peak_bytes'] / 2**20:.0f}",
            f"{(side['peak_bytes'] - report['gradient_bytes']) / 2**20:.0f}",
            f"{full['peak_bytes'] / side['peak_bytes']:.1f}" if full else "",
            f"{side['median_seconds']:.2f}",
            f"{full['median_seconds'] / side['median_seconds']:.1f}" if full else "",
        )
    return table


if __name__ == "__main__":
    main()
