"""A process that compares two LaTeX answers: one JSON object per line in, one reply per line out.

Started by ``answers.AnswerScorer`` as ``python -m stages.reward.answer_worker MEMORY_MB ALARM_S``. The first line
out, ``"ready"``, says that the imports are done. A request is an object of ``gold`` and ``response``, LaTeX both, and
``rounded``, a decimal to which the response must round, or nothing. Its reply is ``[verdict, spent]``: 1.0 (equal) or
0.0 (not equal, or one of them does not parse or evaluate: equal texts never come here), and whether more than half of
the memory stays taken (by sympy's caches), so that another worker should go on.

Math-Verify compares to twelve decimal places. A pair that it finds equal is looked at again: of two numbers, however
small, the ratio must be one.

Math-Verify compares, gold first (it is asymmetric), what its own LaTeX grammar makes of the whole strings. Neither
its extraction, which evaluates Python expressions, nor its time-outs, which need the main thread and raise a
BaseException, take part.
Time is the parent's to bound, by kill; memory is bounded here, and ``code_guard`` keeps texts from becoming code.
"""

import functools
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from stages.reward import code_guard


def main(memory_mb: int, alarm_s: float) -> None:
    """Answer requests from stdin until it closes. Exits 1 when a parse exhausts the memory limit."""
    if sys.platform != "darwin":  # macOS refuses a limit on address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    # scipy, which sympy imports for sums, would reserve address space for a thread of every core.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    # Replies own the real stdout: nothing a library prints may pass for a verdict.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    from latex2sympy2_extended import NormalizationConfig, latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from math_verify import verify
    from math_verify.grader import should_treat_as_complex

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    # units=False: a unit that is dropped makes 12 cm equal 12 miles.
    notation = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, boxed="none")

    case_sensitive = ConversionConfig(lowercase_symbols=False)
    code_guard.install()

    # Parsing is nearly all of the time, and the responses of a group share their gold.
    @functools.lru_cache(maxsize=16)
    def parse(latex: str) -> Any:
        try:
            return latex2sympy(
                latex,
                is_real=not should_treat_as_complex(latex),
                normalization_config=notation,
                conversion_config=case_sensitive,
            )
        except MemoryError:
            sys.exit(1)
        except Exception:  # noqa: BLE001 - the grammar raises bare Exception, sympy anything
            return None

    def compare(gold: str, response: str, rounded: str) -> float:
        one, other = parse(gold), parse(response)
        if one is None or other is None:
            return 0.0
        try:
            equal = verify(one, other, float_rounding=12, numeric_precision=50, timeout_seconds=None)
            return float(equal and same_size(one, other) and (not rounded or rounds_to(other, rounded)))
        except TypeError:  # sympy cannot order what it cannot evaluate
            return 0.0

    print(json.dumps("ready"), file=replies)
    for line in sys.stdin:
        request = json.loads(line)
        # The parent kills at its deadline; an orphan has nobody to do so, and SIGALRM ends even a loop in C.
        signal.setitimer(signal.ITIMER_REAL, alarm_s)
        verdict = compare(**request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps([verdict, held_mb() > memory_mb / 2]), file=replies)


DIGITS = 30
TOLERANCE = 1e-12


def same_size(gold: Any, response: Any) -> bool:
    """Whether two expressions, found equal to an absolute tolerance, are so relative to their size, part by part.

    Symbols are given a value; equations, which a factor does not change, are left as they were found.
    """
    from sympy import Expr, Interval, Rational, Set, Tuple, prime

    if isinstance(gold, Expr) and isinstance(response, Expr):
        difference = gold - response
        symbols = sorted(difference.free_symbols, key=str)
        return vanishes(difference.subs({symbol: Rational(prime(n), 7) for n, symbol in enumerate(symbols, 5)}))
    parts = (Tuple, Interval, Set)
    if not (isinstance(gold, parts) and isinstance(response, parts)) or len(gold.args) != len(response.args):
        return True
    return all(same_size(one, other) for one, other in zip(_members(gold), _members(response), strict=True))


def vanishes(number: Any) -> bool:
    """Whether a sum is zero beside its largest term; True for what is no finite number."""
    from sympy import Add, N

    if not number.is_number or number.is_finite is False:
        return True
    total, size = (abs(N(part, DIGITS)) for part in (number, max(Add.make_args(number), key=lambda term: abs(N(term)))))
    return bool(total <= TOLERANCE * size) if total.is_finite and size.is_finite else True


def _members(expression: Any) -> list[Any]:
    """Its parts, those of a set in an order that does not depend on how it was written."""
    from sympy import FiniteSet, default_sort_key

    members = list(expression.args)
    return sorted(members, key=default_sort_key) if isinstance(expression, FiniteSet) else members


def rounds_to(value: Any, rounded: str) -> bool:
    """Whether a number is within half a unit of the last place of the decimal."""
    from sympy import N, Rational

    if not getattr(value, "is_number", False):
        return False
    half = Rational(1, 2 * 10 ** len(rounded.partition(".")[2]))
    return bool(abs(N(value - Rational(rounded), DIGITS)) <= half)


def held_mb() -> float:
    """Address space of this process, where it is limited; 0.0 on macOS."""
    if sys.platform == "darwin":
        return 0.0
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
