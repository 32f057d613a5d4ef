"""Where a training step waits for the device: whatever it fetches in between leaves a GPU with nothing to do."""

import sys
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from training_step_case import Shape, make_case
from training_step_sides import Ours

FETCHING = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.cpu,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.nonzero,
    Tensor.masked_select,
}
BY_FLAGS = {Tensor.__getitem__, Tensor.__setitem__}
"""Wait where they are given flags, to count them."""
ON_THE_CPU = {("places", "nonzero"), ("_read", "__bool__"), ("_rope_index", "nonzero"), ("_rope_index", "tolist")}
"""Functions of this project that look at tensors which are made there and stay there."""


class Waits(TorchFunctionMode):
    """Counts by function of this project, and what it calls."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        caller = sys._getframe(1)
        if "/stages/" in caller.f_code.co_filename and (function in FETCHING or by_flags(function, args)):
            self.found[caller.f_code.co_name, function.__name__] += 1
        return function(*args, **(kwargs or {}))


def by_flags(function, args):
    if function not in BY_FLAGS:
        return False
    indices = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


def test_a_step_waits_once_a_pass_and_once_for_its_norm_whatever_rows_roles_and_layers():
    case = make_case(Shape(prompt=60, grid=(4, 6), shortest=40, longest=50), 4)
    side = Ours(case, 2, gated=True)
    passes = 2

    with Waits() as waits:
        side.step()

    assert {place: count for place, count in waits.found.items() if place not in ON_THE_CPU} == {
        ("_windows", "tolist"): 2 * passes,  # of three layers, two kinds of windows
        ("_fetched", "tolist"): passes,
        ("step", "item"): 1,
    }
