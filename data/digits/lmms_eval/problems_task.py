"""What `digits.yaml` names: any `problems` in lmms-eval, scored by the rules of `df evaluate`."""

from typing import Any

from stages.reward import score_answer


def images(problem: dict[str, Any]) -> list[Any]:
    """Those of the problem, as the model is shown them."""
    return [image.convert("RGB") for image in problem["images"]]


def score(problem: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """The reward of the response; nothing, which the mean leaves out, where it cannot be scored."""
    reward = score_answer(responses[0], problem["answer"], choices=problem.get("choices"))
    return {} if reward is None else {"accuracy": reward}
