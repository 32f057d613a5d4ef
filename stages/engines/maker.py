"""Whose token ids and log-probs an artifact holds, and whether a policy may go on from them.

A ratio of a policy to old log-probs of other weights, another temperature or another prompt says nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from stages.artifacts.fingerprint import fingerprint
from stages.artifacts.manifests import MAKER_SETTINGS, is_step, read_manifest, recorded_maker
from stages.artifacts.plan import Input
from stages.artifacts.problems import Problem
from stages.artifacts.weights import are_digests, weights_fingerprint
from stages.errors import DataError, ModelError
from stages.model.batches import encode_prompt
from stages.model.codec import Codec
from stages.model.prompts import policy_prompt
from stages.recipe import Recipe
from stages.runtime import processes

logger = logging.getLogger(__name__)

_IMAGES: Sequence[Sequence[tuple[int, int]]] = ([], [(64, 64)], [(640, 480)])
"""Sizes of the images of a prompt each, by whose token ids one way to make prompts is told from another."""


def maker(policy: Path, codec: Codec, recipe: Recipe) -> dict[str, Any]:
    """For a plan's recipe, beside the recipe's own sections: the policy's tokens, weights and prompts.

    `MAKER_SETTINGS` says what of those sections counts too.
    """
    own = {"weights": processes.on_main(lambda: weights_fingerprint(policy)), "prompts": _prompts_sha256(codec, recipe)}
    return {"vocabulary": codec.vocabulary_sha256, "policy": own}


def check_maker(made: Path, policy: Path, own: Mapping[str, Any], recipe: Recipe, *, remake: str) -> None:
    """Refuse a policy or a recipe that an artifact's log-probs are not of, as far as its manifest tells.

    `own` is the `maker` of the policy, `remake` the command that makes the artifact again.

    Raises:
        ModelError: the tokenizer is another one, so that the token ids mean something else.
        DataError: names all that differs.
    """
    recorded = recorded_maker(made)
    if not recorded:
        return
    source = read_manifest(made)["inputs"].get("policy", {}).get("path", "the policy")
    own = {**recipe.model_dump(), **own}
    if recorded.get("vocabulary", own["vocabulary"]) != own["vocabulary"]:
        raise ModelError(
            f"{made}: its token ids are of the tokenizer of {source} ({recorded['vocabulary'][:12]}), not of that of "
            f"{policy} ({own['vocabulary'][:12]}); give the model that made them, or one trained from it"
        )
    if different := [*_other_policy(recorded, own, source, policy), *_other_settings(recorded, own)]:
        raise DataError(
            f"{made}: its log-probs are not those of this policy under this recipe: {'; '.join(different)}. Give what "
            f"they were made with, or run {remake} with what is given here"
        )


def warn_of_other_problems(made: Path, given: Input, *, remake: str) -> None:
    """Tell where an artifact was made from other problems than are given, as far as its manifest tells."""
    recorded = read_manifest(made)["inputs"] if is_step(made) else {}
    source = recorded.get("problems", recorded.get("preferences"))
    if source is not None and source["sha256"] != fingerprint(given.path, given.reads):
        logger.warning(
            "%s: made from %s as it was then, which is not %s: what was made of a problem that is another one there is "
            "not of this one; run %s again, unless problems were only added or left out",
            made,
            source["path"],
            given.path,
            remake,
        )


def _other_policy(recorded: Mapping[str, Any], own: Mapping[str, Any], source: str, policy: Path) -> Iterator[str]:
    """Empty where one of the two is a hub's name and the other a folder: the first step's ratio tells then."""
    if "policy" not in recorded:
        return
    weights, other = recorded["policy"]["weights"], own["policy"]["weights"]
    if weights != other and are_digests(weights) == are_digests(other):
        yield f"they are of the weights of {source} ({weights[:12]}), not of those of {policy} ({other[:12]})"
    same_settings = not list(_other_settings(recorded, own))
    if same_settings and recorded["policy"]["prompts"] != own["policy"]["prompts"]:
        yield f"the chat template or the image processor of {policy} makes other prompts than that of {source}"


def _other_settings(recorded: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    for section, names in MAKER_SETTINGS.items():
        for name in names:
            old, new = recorded.get(section, {}).get(name, own[section][name]), own[section][name]
            if old != new:
                yield f"{section}.{name} was {old!r} and is {new!r}"


def _prompts_sha256(codec: Codec, recipe: Recipe) -> str:
    """Hex SHA-256 over the token ids of prompts without an image, with a small one and with a large one, expanded."""
    problems = [Problem.asking("What is seen here?", [Image.new("RGB", size) for size in sizes]) for sizes in _IMAGES]
    prompts = [policy_prompt(codec.processor, recipe.prompt, problem) for problem in problems]
    ids = [encode_prompt(codec, prompt).ids for prompt in prompts]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
