"""What no module of this project calls: whatever would run or unpickle what others wrote."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [file for folder in ("stages", "df_cli", "data") for file in sorted((ROOT / folder).rglob("*.py"))]
MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
BUILTINS = {"__import__", "compile", "eval", "exec"}
CALLS = {
    "numpy.load", "os.popen", "os.system", "pandas.read_pickle", "torch.hub.load", "torch.jit.load", "torch.load",
    "yaml.full_load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
}  # fmt: skip


def forbidden(source: str) -> list[str]:
    """Calls and imports in it that may not be, each with its line."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    full_names = {}
    found = []
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                name = module + alias.name
                full_names[alias.asname or alias.name.split(".")[0]] = (
                    name if alias.asname or module else name.split(".")[0]
                )
                if name.split(".")[0] in MODULES or name in CALLS:
                    found.append(f"{node.lineno}: import of {name}")
    for node in nodes:
        if isinstance(node, ast.Call):
            name = dotted(node.func, full_names)
            shell = any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords)
            if name in BUILTINS | CALLS or shell:
                found.append(f"{node.lineno}: {name}")
    return found


def dotted(function: ast.expr, full_names: dict[str, str]) -> str:
    if isinstance(function, ast.Name):
        return full_names.get(function.id, function.id)
    if isinstance(function, ast.Attribute):
        return f"{dotted(function.value, full_names)}.{function.attr}"
    return ""


def test_nothing_runs_or_unpickles_what_others_wrote():
    found = {file: forbidden(file.read_text(encoding="utf-8")) for file in FILES}
    assert {str(file): calls for file, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load(f)",
        "from torch import load as read\nread(f)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "def f(x):\n    exec(x)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
    ],
)
def test_the_check_finds_it(source):
    assert len(forbidden(source)) >= 1


def test_the_check_lets_other_calls_pass():
    source = "import yaml, re, json\nmodel.eval()\nyaml.safe_load(x)\nre.compile(x)\njson.load(x)\nlayer.compile()"
    assert forbidden(source) == []
    assert len(FILES) > 100
