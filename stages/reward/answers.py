"""The rule-based task reward, kind ``math``: is the final answer of a response the reference answer?

Rules, in this order. ``extraction`` says what a final answer is; a response without one is wrong.

* An answer equal to the gold, character by character once cleaned, is right.
* Gold a choice: A to J, or where ``choices`` are given the letter or the text of one. Right are its letter, its letter
  beside its own text, and its text alone where no other choice has it; two letters, or a letter beside another choice's
  text, are wrong, also where a full stop parts them ("The answer is C. 45°.").
* Gold a figure or a relation of figures: the same one, however it is named (an angle read backwards).
* Gold an inequality or an interval: the same range of the same name. Gold several answers: all of them, in any order.
* Gold a plain number (``quantities.number``): the response must be a plain number of exactly that value. 1/2 is
  0.5; 0.333 is not 1/3; 1+1 is not 2, nor 2^3 eight. No tolerance. A rounding behind an exact value is part of it;
  a gold with one takes either.
* Names: what stands left of an equals sign (``x = 5``, ``\\angle ABC = 45``), or what a sentence is about ("The cat is
  5"), must not differ, where both sides have it.
* Units: two different ones contradict each other (12 cm is not 12 miles, nor 120 mm); one that only one side
  states does not (12 cm for 12, and 12 for 12 cm, are right). Percent is part of the value: on both sides or on
  neither. A sign right behind a box (``\\boxed{12}\\%``) is read where the gold has a unit; where it has none, the
  box alone counts.
* Words around an answer ("The area is", "because the sides agree") are passed over where they hedge nothing.
* Gold words, or digits that are no quantity (10:30, 2022-05-01, 3 5): the same text, apart from case and spaces.
* Anything else is compared by Math-Verify in a worker process: mathematical equality, whatever the form. A response
  that leaves an operation to be done (``\\int``, ``\\sum``, ``!``, ``3 5``) which the gold does not contain is wrong,
  and so is a set or list for an ordered gold such as a point or an interval, or one of these for a set in braces.
  To a gold that no grammar reads everything but its text is wrong; one whose braces do not close scores nothing.

The rules lie in ``rules``, with what peers accept and they refuse on purpose in ``rules/REFUSED.md``.
"""

import atexit
import functools
import json
import selectors
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from stages.reward.choice_extraction import announced_choice, final_choice
from stages.reward.extraction import final_answer, final_answers, gold_answer
from stages.reward.rules.choices import named_choice
from stages.reward.rules.choosing import compare_choice, is_choice, names_no_choice, with_text_behind
from stages.reward.rules.equality import Comparison, Verdict, compare
from stages.reward.rules.lists import several
from stages.reward.rules.quantities import quantity

STARTUP_TIMEOUT_S = 120.0
STARTS = 3
"""Times a worker is started before it counts as one that cannot: starting, too, it may be killed from outside."""


def score_answer(
    response: str, answer: str, *, choices: Sequence[str] | None = None, timeout_s: float = 5.0
) -> Verdict:
    """Score one response against its reference answer, one of `choices` where there are any.

    See ``AnswerScorer.score_many``.
    """
    return _shared_scorer(timeout_s).score_many([response], [answer], [choices])[0]


@functools.cache
def _shared_scorer(timeout_s: float) -> "AnswerScorer":
    scorer = AnswerScorer(workers=1, timeout_s=timeout_s)
    atexit.register(scorer.close)
    return scorer


class AnswerScorer:
    """Scores batches of answers; a context manager, usable from any thread.

    workers: processes that compare what is neither number nor text; they start when first needed and are reused.
    timeout_s: wall seconds a comparison may take before its worker is killed and its verdict None.
    memory_mb: address space of a worker. Where Math-Verify survives a refused allocation, the verdict is 0.0.
    """

    def __init__(self, workers: int = 2, timeout_s: float = 5.0, memory_mb: int = 2048) -> None:
        if workers < 1 or timeout_s <= 0 or memory_mb < 1:
            raise ValueError(
                f"AnswerScorer(workers={workers}, timeout_s={timeout_s}, memory_mb={memory_mb}): "
                "all three must be positive"
            )
        self._workers = [_Worker(timeout_s, memory_mb) for _ in range(workers)]
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)

    def score_many(
        self,
        responses: Sequence[str],
        answers: Sequence[str],
        choices: Sequence[Sequence[str] | None] | None = None,
    ) -> list[Verdict]:
        """Verdicts in the order of the pairs; a pair that kills its worker costs no other pair anything.

        choices: per pair the texts of the choices A, B, …, or None where the question has none.

        Raises ValueError on unequal lengths, RuntimeError when a worker cannot start.
        """
        listed = [None] * len(answers) if choices is None else choices
        if not len(responses) == len(answers) == len(listed):
            raise ValueError(
                f"{len(responses)} responses for {len(answers)} answers and {len(listed)} lists of choices; "
                "pass one of each per response"
            )
        decisions = [_decide(*pair) for pair in zip(responses, answers, listed, strict=True)]
        comparisons = list(dict.fromkeys(d for d in decisions if isinstance(d, Comparison)))
        with ThreadPoolExecutor(len(self._workers)) as threads:
            verdicts = dict(zip(comparisons, threads.map(self._compare, comparisons), strict=True))
        return [verdicts[d] if isinstance(d, Comparison) else d for d in decisions]

    def _compare(self, comparison: Comparison) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.compare(comparison)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kill the workers. A later score_many starts fresh ones."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decide(response: str, answer: str, choices: Sequence[str] | None = None) -> Verdict | Comparison:
    gold = gold_answer(answer)
    if gold is None:
        return None
    if is_choice(gold, choices):
        return _decide_choice(response, gold, choices)
    text = final_answers(response) if several(gold) else final_answer(response, bare=not quantity(gold).unit)
    return 0.0 if text is None else compare(text, gold)


def _decide_choice(response: str, gold: str, choices: Sequence[str] | None) -> Verdict | Comparison:
    chosen = final_choice(response)
    if chosen is None:
        return 0.0
    verdict = compare_choice(with_text_behind(*chosen, choices), gold, choices)
    if verdict == 1.0 or not choices or not names_no_choice(chosen.statement, choices):
        return verdict
    # A value in a box that is none of the choices was on the way to one, where a sentence names it.
    announced = announced_choice(response)
    if announced is None or named_choice(announced.statement) is None:
        return verdict
    return compare_choice(with_text_behind(*announced, choices), gold, choices)


class _Worker:
    """One worker process, started when first used and again after a kill. Used by one thread at a time."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self._timeout_s = timeout_s
        self._memory_mb = memory_mb
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, comparison: Comparison) -> Verdict:
        """The worker's verdict; None when it died over this comparison or was killed at the deadline."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        reply = self._exchange(json.dumps(comparison._asdict()).encode() + b"\n", self._timeout_s)
        if not reply:
            return None
        verdict, spent = json.loads(reply)
        if spent:
            self.stop()
        return verdict

    def _start(self) -> None:
        for _ in range(STARTS):
            self.stop()
            self._process = self._launch()
            if self._exchange(b"", STARTUP_TIMEOUT_S):
                return
        raise RuntimeError(
            f"answer worker did not start with memory_mb={self._memory_mb}; "
            "see its error above, and raise memory_mb if it ran out of memory"
        )

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.reward.answer_worker", str(self._memory_mb), str(2 * self._timeout_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=Path(__file__).parents[2],
            # Ctrl-C in the terminal is for the parent, which may want these verdicts before it stops.
            start_new_session=True,
        )

    def _exchange(self, request: bytes, timeout_s: float) -> bytes:
        """Send a line and return the line that answers it; b"" where the worker died or had to be killed."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            try:
                process.stdin.write(request)
                reply = process.stdout.readline() if selector.select(timeout_s) else b""
            except BrokenPipeError:
                reply = b""
        if not reply.endswith(b"\n"):
            self.stop()
            return b""
        return reply

    def stop(self) -> None:
        """Kill the process; its context then closes the pipes and reaps it."""
        if self._process is not None:
            with self._process as process:
                process.kill()
            self._process = None
