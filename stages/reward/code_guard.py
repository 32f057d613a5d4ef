"""For a process that computes with texts of strangers: no code that a text became is run, nothing outside is touched.

sympy makes Python source of expressions (``lambdify``, in the numerical value of a sum) and of numbers (``sympify``),
and runs it: the name in ``\\text{a[0]}`` would be evaluated. An audit hook, which cannot be taken off again, refuses.
"""

import os
import sys
from types import CodeType, FrameType
from typing import Any

GENERATED_NAMES = {
    *("sympy", "Integer", "Float", "Rational", "_lambdifygenerated", "numpy", "numpy.linalg", "scipy", "scipy.special"),
    *(f"monomial_{operation}" for operation in ("mul", "pow", "mulpow", "ldiv", "div", "lcm", "gcd")),
}
"""All that generated code may name, attributes included: what sympy needs for numbers, polynomials and sums."""

_OUTSIDE = {"os", "shutil", "subprocess", "pty", "socket", "ctypes", "fcntl", "mmap", "signal"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def install() -> None:
    """From here on PermissionError meets generated code that names anything else, and files, processes and sockets.

    Reading files and importing stay free: sympy imports its own modules when it first needs them.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event == "exec":
        refused = _is_generated(args[0]) and not _names(args[0]) <= GENERATED_NAMES
    elif event == "open":
        refused = bool(args[2] & _WRITING)
    else:
        refused = event.partition(".")[0] in _OUTSIDE
    if refused and not _is_importing():
        raise PermissionError(f"{event}: refused to a text that is compared")


def _is_generated(code: CodeType) -> bool:
    return code.co_filename.startswith("<") and not code.co_filename.startswith("<frozen ")


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
