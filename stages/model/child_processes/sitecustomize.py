"""Python runs this when it starts: torchvision's missing operators are declared just before it is imported."""

import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any


class _BeforeTorchvision:
    """Finds no module; it is asked first, once for torchvision."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        # By its path: the package that it is in imports torchvision.
        module = sys.modules["torchvision_ops"] = ModuleType("torchvision_ops")
        SourceFileLoader(module.__name__, str(Path(__file__).parents[1] / "torchvision_ops.py")).exec_module(module)
        module.declare_missing_operators()


sys.meta_path.insert(0, _BeforeTorchvision())
