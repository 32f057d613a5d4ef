"""What each step's output depends on, told from its recipe and inputs alone: no model is opened, no torch imported.

A stage completes this with what it finds in its inputs; `df` and `make` compare it with what is there already.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from stages.artifacts.columns import EPISODES, ERRORS, GROUPS, PREFERENCES, PROBLEMS, REPAIR_SET, ROLLOUTS, TableSpec
from stages.artifacts.manifests import MODEL, OPTIMIZER_STATE
from stages.artifacts.plan import Input, Plan
from stages.recipe import Recipe
from stages.sections import MARK_FIELDS, MASK_OPTIONS, SAMPLING_FIELDS

Inputs = dict[str, Path | Input]
PromptKind = Literal["repair", "policy"]
ANSWER_PROMPT = {"instruction"}
"""Fields of `prompt` that a prompt for an answer is made of; the others are of repair prompts."""
WEIGHTS = (f"{MODEL}/*",)
"""What sampling and scoring read of a training step's output."""


def declare_repair_sheet(recipe: Recipe, problems: Path, policy: Path, count: int) -> Plan:
    sections = recipe.subset(
        "model",
        "engine",
        "reward",
        prompt=ANSWER_PROMPT,
        rollout=SAMPLING_FIELDS,
        repair_set={"samples_per_problem", "errors_per_problem"},
    )
    inputs = {"problems": table_input(problems, PROBLEMS), "policy": Input(policy, WEIGHTS)}
    return Plan("repair-set sheet", sections | {"count": count}, recipe.seed, inputs | own_reward(recipe))


def declare_repair_set(recipe: Recipe, sheet: Path, annotated: Path, policy: Path) -> Plan:
    sections = recipe.subset("reward", repair_set={"max_edit_cost"}, sft={"heldout_share"})
    policy_read = Input(policy, WEIGHTS)
    inputs: Inputs = {"sheet": table_input(sheet, ERRORS), "annotated": annotated, "policy": policy_read}
    return Plan("repair-set read", sections, recipe.seed, inputs | own_reward(recipe))


def declare_sft_repair(recipe: Recipe, repair_set: Path, model: Path, prompt: PromptKind = "repair") -> Plan:
    if prompt == "policy":
        sections = recipe.subset("model", "sft", "trainer", prompt=ANSWER_PROMPT) | {"prompts_of": "policy"}
    else:
        # Its held-out repairs come from the weights in training, whatever the recipe's engine.
        batches = {"rows_per_batch", "tokens_per_batch"}
        sections = recipe.subset(
            "model", "prompt", "reward", "audit", "sft", "trainer", engine=batches, rollout=SAMPLING_FIELDS
        )
    start = Input(model, WEIGHTS + _masters(recipe))
    inputs: Inputs = {"repair_set": table_input(repair_set, REPAIR_SET), "model": start}
    return Plan("sft-repair", sections, recipe.seed, inputs | ({} if prompt == "policy" else own_reward(recipe)))


def declare_rl_repair(
    recipe: Recipe, problems: Path, policy: Path, repair_model: Path, repair_set: Path | None = None
) -> Plan:
    marks = {"masks": MARK_FIELDS} if recipe.audit.auditor == "served" else {}
    sections = recipe.subset(
        "model",
        "engine",
        "prompt",
        "reward",
        "audit",
        "repair_rl",
        "trainer",
        rollout=SAMPLING_FIELDS,
        sft={"heldout_share"},
        **marks,
    )
    critic = _critic(recipe.repair_rl.objective.algorithm == "ppo")
    inputs = {
        "problems": table_input(problems, PROBLEMS),
        "policy": Input(policy, WEIGHTS),
        "repair_model": Input(repair_model, WEIGHTS + _masters(recipe) + critic),
    }
    if repair_set is not None:
        inputs["repair_set"] = table_input(repair_set, REPAIR_SET)
    return Plan("rl-repair", sections, recipe.seed, inputs | own_reward(recipe))


def declare_rollout(recipe: Recipe, problems: Path, policy: Path) -> Plan:
    sections = recipe.subset("model", "engine", "reward", "rollout", prompt=ANSWER_PROMPT)
    inputs = {"problems": table_input(problems, PROBLEMS), "policy": Input(policy, WEIGHTS)}
    return Plan("rollout", sections, recipe.seed, inputs | own_reward(recipe))


def declare_build_masks(recipe: Recipe, repair_model: Path | None, policy: Path, **data: Path) -> Plan:
    """Plan of `df build-masks`; `data` names its input tables: `rollouts` and `problems`, or `preferences` alone."""
    specs: dict[str, TableSpec[Any]] = {"rollouts": ROLLOUTS, "problems": PROBLEMS, "preferences": PREFERENCES}
    prompt = ANSWER_PROMPT | ({"reference_instruction"} if recipe.train.scores == "answer_gaps" else set())
    sections = recipe.subset("model", "engine", "reward", "masks", prompt=prompt, rollout=SAMPLING_FIELDS)
    if recipe.masks.repairer == "model":
        sections |= recipe.subset("prompt", "audit")
    if recipe.masks.repair_when == "always":
        sections = _without(sections, "masks", {"repair_when", "worthwhile_share", "worthwhile_after"})
    if recipe.train.scores is not None:
        sections |= {"scores": recipe.train.scores}
    if recipe.train.gate == "perception":
        sections |= recipe.subset(repair_rl={"blank"})
    inputs = {name: table_input(path, specs[name]) for name, path in data.items()}
    inputs |= {} if repair_model is None else {"repair_model": Input(repair_model, WEIGHTS)}
    inputs |= {"policy": Input(policy, WEIGHTS)}
    return Plan("build-masks", sections, recipe.seed, inputs | own_reward(recipe))


def declare_realigned_pairs(recipe: Recipe, pairs: Path) -> Plan:
    return Plan("build-masks", recipe.subset(masks=MASK_OPTIONS), recipe.seed, {"pairs": table_input(pairs, GROUPS)})


def declare_train_policy(
    recipe: Recipe,
    groups: Path,
    problems: Path,
    policy: Path,
    reference: Path | None = None,
    budget_device_seconds: float | None = None,
) -> Plan:
    sections = recipe.subset("model", "train", "trainer", prompt=ANSWER_PROMPT, rollout=SAMPLING_FIELDS)
    section = recipe.train
    off = {name for name in ("leak", "evenness", "support") if getattr(section, name) == 0}
    off |= {"kl_reference"} if section.objective.kl_coef == 0 else set()
    off |= {"half_life"} if section.gate != "soft" else set()
    off |= {"answer_gap_weight"} if section.advantage != "answer_gap" else set()
    off |= {"prime"} if section.advantage != "prime" else set()
    sections = _without(sections, "train", off)
    budget = {"budget_device_seconds": budget_device_seconds}
    optimizer = (OPTIMIZER_STATE,) if recipe.trainer.lora is None else _masters(recipe)
    prm = ("prm/*",) if recipe.train.advantage == "prime" else ()
    inputs = {
        "groups": table_input(groups, GROUPS),
        "problems": problems_or_preferences(problems),
        "policy": Input(policy, WEIGHTS + optimizer + prm + _critic(recipe.train.has_critic)),
    }
    anchor = train_anchor(recipe, policy, reference)
    if anchor not in (None, policy):
        inputs["reference"] = Input(anchor, WEIGHTS)
    return Plan("train-policy", sections | budget, recipe.seed, inputs)


def train_anchor(recipe: Recipe, policy: Path, reference: Path | None) -> Path | None:
    """The checkpoint that a KL term of `df train-policy` compares with, `reference` or `policy` by `kl_reference`.

    None where the objective has no KL term. None too where adapters are trained on that very policy: the trainer then
    switches them off to compare, and opens no second model.
    """
    section = recipe.train
    if section.objective.kl_coef == 0:
        return None
    if section.kl_reference == "start" and reference is not None and reference != policy:
        return reference
    return policy if recipe.trainer.lora is None else None


def declare_evaluate(recipe: Recipe, problems: Path, model: Path) -> Plan:
    blank = {"repair_rl": {"blank"}} if recipe.evaluate.image_removed else {}
    sections = recipe.subset(
        "model", "engine", "reward", "evaluate", prompt=ANSWER_PROMPT, rollout=SAMPLING_FIELDS, **blank
    )
    inputs = {"problems": table_input(problems, PROBLEMS), "model": Input(model, WEIGHTS)}
    return Plan("evaluate", sections, recipe.seed, inputs | own_reward(recipe))


def declare(step: str, recipe: Recipe, given: Mapping[str, Any]) -> Plan | None:
    """The plan of a command from its options, those that were not given as None; None where they name no step."""
    if step != "build-masks":
        return DECLARED[step](recipe, **given)
    if given["pairs"] is not None:
        return declare_realigned_pairs(recipe, given["pairs"])
    data = ("rollouts", "problems") if given["preferences"] is None else ("preferences",)
    if None in (given["policy"], *(given[name] for name in data)):
        return None
    return declare_build_masks(recipe, given["repair_model"], given["policy"], **{name: given[name] for name in data})


DECLARED: Mapping[str, Callable[..., Plan]] = {
    "repair-set sheet": declare_repair_sheet,
    "repair-set read": declare_repair_set,
    "sft-repair": declare_sft_repair,
    "rl-repair": declare_rl_repair,
    "rollout": declare_rollout,
    "build-masks": declare_build_masks,
    "train-policy": declare_train_policy,
    "evaluate": declare_evaluate,
}
"""By command, the function that plans its step, given a recipe and the inputs of a run."""


def episodes_read(episodes: Path) -> Input:
    """What an audit reads of `df rl-repair`'s output."""
    return table_input(episodes, EPISODES)


def own_reward(recipe: Recipe) -> Inputs:
    """The file of a reward function of the user's, as an input: with other code it gives other rewards.

    Empty where the recipe names none, or Python finds no such file.
    """
    module, colon, _ = recipe.reward.name.partition(":")
    try:
        found = importlib.util.find_spec(module) if colon else None
    except (ImportError, ValueError):  # a stage that is about to run tells why
        return {}
    return {"reward": Path(found.origin)} if found is not None and found.has_location and found.origin else {}


def _without(sections: dict[str, Any], section: str, off: set[str]) -> dict[str, Any]:
    """Without options that are off: outputs from before there were any stay up to date."""
    return sections | {section: {name: value for name, value in sections[section].items() if name not in off}}


def table_input(path: Path, spec: TableSpec[Any]) -> Input:
    """A file of this artifact, or a folder of which its files are read."""
    return Input(path, (f"{spec.name}-*.parquet", f"{spec.name}.parquet"))


def _masters(recipe: Recipe) -> tuple[str, ...]:
    """Where float32 weights lie that the checkpoint of a step has rounded."""
    return () if recipe.model.dtype == "float32" else (OPTIMIZER_STATE,)


def problems_or_preferences(path: Path) -> Input:
    """What groups were made from."""
    return Input(path, table_input(path, PROBLEMS).reads + table_input(path, PREFERENCES).reads)


def _critic(is_read: bool) -> tuple[str, ...]:
    return ("critic/*",) if is_read else ()
