"""The guard in a process of its own, since no process can take it off again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

REFUSED = {
    "a shell": "os.system('true')",
    "a process": "subprocess.Popen(['true'])",
    "a fork": "os.fork()",
    "a file to write": "open(path, 'w')",
    "a file to append to": "open(path, 'ab')",
    "a descriptor to write": "os.open(path, os.O_WRONLY | os.O_CREAT)",
    "a file to delete": "os.remove(here)",
    "a file to rename": "os.rename(here, path)",
    "a folder": "os.mkdir(path)",
    "a tree to delete": "shutil.rmtree(path)",
    "a socket": "socket.socket()",
    "an address": "socket.getaddrinfo('localhost', 80)",
    "a library": "ctypes.CDLL(None)",
    "a signal": "os.kill(os.getpid(), 0)",
    "a variable": "os.putenv('A', 'b')",
    "a text that calls": "eval(\"print(1)\")",
    "a text that reads": "eval('path')",
    "a statement": "exec('import json')",
    "a text compiled before": "exec(compile('path', '<unknown>', 'exec'))",
    "a name inside a function": "exec('def monomial_mul():\\n return path')",
    "an expression of sympy": "sympy.lambdify(x, sympy.Symbol('path'), modules='mpmath')",
    "a text for sympy": "sympy.sympify('x + 1')",
}  # fmt: skip

LET_THROUGH = {
    "an integer": "sympy.sympify('12') == 12",
    "a decimal": "sympy.Number('1.5') == 1.5",
    "a text without names": "eval('1 + 1') == 2",
    "a polynomial": "sympy.Poly(x**2 - 1).gcd(sympy.Poly(x - 1)) == sympy.Poly(x - 1)",
    "a sum": "abs(sympy.Sum(1 / sympy.factorial(x), (x, 0, sympy.oo)).evalf() - sympy.E.evalf()) < 1e-12",
    "a module with generated code": "__import__('sched').Event.__name__ == 'Event'",
    "a file to read": "bool(open(here).read())",
}

SCRIPT = """
import ctypes, json, os, shutil, socket, subprocess, sys
import sympy
from stages.reward import code_guard

here, path, refused, let_through = json.load(sys.stdin)
x = sympy.Symbol("x")
todo = {what: eval(f"lambda: {source}") for what, source in (refused | let_through).items()}
code_guard.install()
results = {}
for what, act in todo.items():
    try:
        results[what] = bool(act())
    except PermissionError as error:
        results[what] = str(error)
    except sympy.SympifyError as error:
        results[what] = str(error)
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guarded")
    here, path = folder / "here", folder / "there"
    here.write_text("text")
    request = json.dumps([str(here), str(path), REFUSED, LET_THROUGH])
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=ROOT, input=request, capture_output=True, text=True, check=True)
    assert here.read_text() == "text"
    assert not path.exists()
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", REFUSED)
def test_refused(results, what):
    assert "refused to a text that is compared" in str(results[what])


@pytest.mark.parametrize("what", LET_THROUGH)
def test_let_through(results, what):
    assert results[what] is True
