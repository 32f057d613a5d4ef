"""Task rewards: the rules, nothing, or a user's own function; and what every reward can do."""

import importlib
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from stages.errors import DataError
from stages.reward.answers import AnswerScorer
from stages.runtime.processes import join, own

Problem = Mapping[str, Any]
RewardFunction = Callable[[str, Problem], float | None]
NONE = "none"


class Reward(Protocol):
    """Scores responses; a context manager that releases what scoring holds (worker processes), by default nothing."""

    waits: bool = False
    """Whether scoring waits for a server: it may then run in another thread while this one generates."""

    def score_many(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
        """Per response the task reward in [0, 1], or None where it cannot be scored; order kept."""
        ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def score_all(reward: Reward, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
    """`score_many` with the responses shared among the processes of a run; all get every reward."""
    return join(score_own(reward, responses, problems))


def score_own(reward: Reward, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
    """`score_many` of this process's share of the responses alone."""
    share = own(list(zip(responses, problems, strict=True)))
    return reward.score_many([response for response, _ in share], [problem for _, problem in share])


def load_reward(name: str, **options: Any) -> Reward:
    """The reward ``math`` (options: those of AnswerScorer), ``none`` or ``module:function``, which take no options.

    The function is called as ``function(response, problem)`` and returns None or a number in [0, 1].
    Raises ValueError when the name is none of these or cannot be imported.
    """
    if name == "math":
        return MathReward(**options)
    if name == NONE and not options:
        return NoReward()
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon):
        raise ValueError(
            f"reward {name!r} is unknown; use 'math' or your own 'module:function' (or 'none'; a recipe: or 'judge')"
        )
    if options:
        raise ValueError(f"reward {name!r} takes no options, got {sorted(options)}; set them in its module")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"reward {name!r}: {error}; install it or put its folder on PYTHONPATH") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"reward {name!r}: {module.__file__} has no function {function_name!r}; define it as "
            f"def {function_name or 'function'}(response, problem)"
        )
    return FunctionReward(name, function)


class MathReward(Reward):
    """The rule-based reward of ``answers``, against each problem's ``answer``, one of its ``choices`` if it has any."""

    def __init__(self, **options: Any) -> None:
        self._scorer = AnswerScorer(**options)

    def score_many(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
        """Raises ValueError for a problem without an answer; see ``AnswerScorer.score_many``."""
        for place, problem in enumerate(problems):
            if not isinstance(problem.get("answer"), str):
                raise ValueError(
                    f"problem {place}: answer is {problem.get('answer')!r}; reward 'math' needs a string 'answer'"
                )
        choices = [problem.get("choices") for problem in problems]
        return self._scorer.score_many(responses, [problem["answer"] for problem in problems], choices)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scorer.close()


class NoReward(Reward):
    """Scores nothing: every reward is null, for whoever fills it in elsewhere."""

    def score_many(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
        return [None for _ in zip(responses, problems, strict=True)]


class FunctionReward(Reward):
    """A user's function, called once per response, its values checked."""

    def __init__(self, name: str, function: RewardFunction) -> None:
        self._name = name
        self._function = function

    def score_many(self, responses: Sequence[str], problems: Sequence[Problem]) -> list[float | None]:
        """Raises DataError where the function returns neither None nor a finite number in [0, 1]."""
        return [
            self._checked(self._function(response, problem), place)
            for place, (response, problem) in enumerate(zip(responses, problems, strict=True))
        ]

    def _checked(self, value: Any, place: int) -> float | None:
        if value is None:
            return None
        # A range check alone also refuses NaN.
        if not isinstance(value, numbers.Real) or not 0 <= float(value) <= 1:
            raise DataError(
                f"reward {self._name!r} returned {value!r} for response {place}; "
                "return a number in [0, 1], or None for what cannot be scored"
            )
        return float(value)
