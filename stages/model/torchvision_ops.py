"""Lets torchvision import beside a CPU-only torch.

Vision-language processors import torchvision. Its wheel on PyPI is compiled for CUDA; beside a CPU build of torch
its extension does not load, and the import then fails on the first operator it wants to describe. Nothing here
needs those operators (box suppression), so declaring their names is enough.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

_declared: torch.library.Library | None = None


def declare_missing_operators() -> None:
    """Declare torchvision's operator names when its compiled extension cannot load; call before importing it."""
    global _declared
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:
        _declared = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def declare_in_child_processes() -> None:
    """Have Python processes that this one starts declare them too, where they are missing."""
    folder = str(Path(__file__).parent / "child_processes")
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if _declared is not None and folder not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *paths])
