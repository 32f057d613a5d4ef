"""Python runs this when it starts: torchvision's missing operators are declared just before it is imported."""

import importlib.util
import sys
from pathlib import Path


class _BeforeTorchvision:
    """Finds no module; it is asked first, once."""

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002
        if name == "torchvision":
            sys.meta_path.remove(self)
            # By its path: its package would import torchvision.
            file = Path(__file__).parents[1] / "torchvision_ops.py"
            spec = importlib.util.spec_from_file_location("torchvision_ops", file)
            sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            module.declare_missing_operators()


sys.meta_path.insert(0, _BeforeTorchvision())
