"""What `digits.yaml` names: lmms-eval runs it in its own environment, so it needs nothing of the project."""

import re
from typing import Any


def images(problem: dict[str, Any]) -> list[Any]:
    """The strip, as the model is shown it."""
    return [image.convert("RGB") for image in problem["images"]]


def score(problem: dict[str, Any], responses: list[str]) -> dict[str, float]:
    """1 where the response ends in the right answer, as the base policy was taught to end."""
    found = re.search(r"The answer is (-?\d+)\.\s*$", responses[0])
    return {"accuracy": float(found is not None and found[1] == problem["answer"])}
