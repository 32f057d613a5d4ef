"""The typed recipe, and how it is read from YAML and `--set`. Imports no machine learning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from stages.errors import RecipeError
from stages.sections import (
    ROLLOUT_GATES,
    AblateSection,
    AuditSection,
    EngineSection,
    EvaluateSection,
    LoopSection,
    MasksSection,
    ModelSection,
    PromptSection,
    RepairRlSection,
    RepairSetSection,
    RewardSection,
    RolloutSection,
    Section,
    SftSection,
    TrackingSection,
    TrainerSection,
    TrainSection,
)

RECIPES = Path(__file__).parent / "recipes"
ENDPOINTS = ("reward.judge", "audit.endpoint")
"""Sections where somebody may write an API key in place of its variable's name: errors show no value of theirs."""


class Recipe(Section):
    """Everything that a run of the pipeline depends on."""

    seed: int = Field(0, ge=0, description="Seed of every stage.")
    model: ModelSection = ModelSection()
    prompt: PromptSection = PromptSection()
    engine: EngineSection = EngineSection()
    reward: RewardSection = RewardSection()
    audit: AuditSection = AuditSection()
    repair_set: RepairSetSection = RepairSetSection()
    sft: SftSection = SftSection()
    repair_rl: RepairRlSection = RepairRlSection()
    rollout: RolloutSection = RolloutSection()
    masks: MasksSection = MasksSection()
    train: TrainSection = TrainSection()
    trainer: TrainerSection = TrainerSection()
    evaluate: EvaluateSection = EvaluateSection()
    loop: LoopSection = LoopSection()
    ablate: AblateSection = AblateSection()
    tracking: TrackingSection = TrackingSection()

    def whole(self) -> dict[str, Any]:
        """Every value as JSON has it, but those of `ENDPOINTS` that no output depends on: one may be a key."""
        return _whole(self, "")

    @model_validator(mode="after")
    def _repair_rl_follows_train(self) -> Recipe:
        """The repair model is trained by the policy's algorithm, unless the recipe names another (the paper's way)."""
        own, followed = self.repair_rl.objective, self.train.objective
        unnamed = "algorithm" not in own.model_fields_set and followed.algorithm != "dpo"  # repairs come in no pairs
        if unnamed or own.algorithm == followed.algorithm:
            set_here = {name: getattr(own, name) for name in own.model_fields_set}
            objective = followed.model_copy(update=set_here)
            # A recipe is frozen, but for its own making.
            object.__setattr__(self, "repair_rl", self.repair_rl.model_copy(update={"objective": objective}))
        return self

    def subset(self, *sections: str, **fields: set[str]) -> dict[str, Any]:
        """Whole sections, and single fields of others: what a stage's output depends on."""
        include: dict[str, Any] = dict.fromkeys(sections, True) | fields
        return self.model_dump(include=include)


def load_recipe(name: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, or a shipped recipe by its name, and apply `section.key=value` assignments.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (with the nearest valid name) or a value out of bounds.
    """
    path = recipe_file(name)
    return recipe_with(read_values(path), path, assignments)


def read_values(path: Path) -> dict[str, Any]:
    """What a recipe file holds, for `recipe_with`.

    Raises:
        RecipeError: it is not YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # no date on the calendar, brackets without end
        raise RecipeError(f"{path}: not YAML: {_one_line(error)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, this is a {type(values).__name__}")
    return values


def recipe_file(name: str | Path) -> Path:
    """The file itself, or a shipped recipe's by its name.

    Raises:
        RecipeError: there is none.
    """
    path = Path(name)
    if not path.is_file():
        path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise RecipeError(f"{name}: no such recipe file; shipped recipes: {', '.join(shipped_recipes())}")
    return path


def _whole(section: BaseModel, prefix: str) -> dict[str, Any]:
    plain = section.model_dump(mode="json")
    kept: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            kept[name] = _whole(value, f"{prefix}{name}.")
        elif name in plain:
            kept[name] = plain[name]
        elif field.exclude and not _is_private(prefix + name):
            kept[name] = None if value is None else str(value) if isinstance(value, Path) else value
    return kept


def shipped_recipes() -> list[str]:
    return sorted(recipe.stem for recipe in RECIPES.glob("*.yaml"))


def recipe_with(values: dict[str, Any], path: Path, assignments: Sequence[str] = ()) -> Recipe:
    """A recipe of what a file holds, changed by `section.key=value` assignments; `path` names it in errors.

    Raises:
        RecipeError: an unknown key (with the nearest valid name) or a value out of bounds.
    """
    values = dict(values)
    for assignment in assignments:
        _assign(values, assignment)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        lines = [_explain(path, assignments, item) for item in error.errors()]
        raise RecipeError("\n".join(lines)) from error
    _check_nothing_is_skipped(recipe, path)
    return recipe


def _check_nothing_is_skipped(recipe: Recipe, path: Path) -> None:
    """DF-PPO leaves out no problem for having no correct rollout (eq. 24-28), so its errors have to be repaired."""
    train, masks = recipe.train, recipe.masks
    if train.objective.algorithm == "ppo" and train.gate not in ROLLOUT_GATES and masks.on_no_correct == "skip":
        raise RecipeError(
            f"{path}: train.objective.algorithm is ppo with train.gate {train.gate}, but masks.on_no_correct is skip, "
            "which leaves problems without a correct rollout unrepaired; set masks.on_no_correct to repair"
        )


def _assign(values: dict[str, Any], assignment: str) -> None:
    dotted, separator, text = assignment.partition("=")
    if not separator:
        raise RecipeError(
            f"--set {assignment}: write section.key=value, and quote a value with spaces: --set 'section.key=a b'"
        )
    *sections, key = dotted.split(".")
    for section in sections:
        inner = values.get(section)
        if not isinstance(inner, dict | None):
            raise RecipeError(f"--set {assignment}: {section} is a value, not a section")
        values[section] = dict(inner or {})  # a copy: a YAML alias may share it with another section
        values = values[section]
    try:
        values[key] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        value, reason = ("its value", "") if _is_private(dotted) else (repr(text), f": {_one_line(error)}")
        raise RecipeError(f"--set {shown_assignment(assignment)}: {value} is not YAML{reason}; quote it") from error


def _explain(path: Path, assignments: Sequence[str], item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    place = _origin(path, assignments, field)
    if item["type"] == "missing":
        return f"{place}: {field} is missing; give it a value"
    if item["type"] == "value_error" and isinstance(item["input"], dict):  # of several fields together
        return f"{place}: {field}: {item['ctx']['error']}"
    if item["type"] != "extra_forbidden":
        value = "" if _is_private(field) else f" is {item['input']!r}"
        return f"{place}: {field}{value}: {item['msg']}"
    return f"{place}: no field {field}; the nearest is {nearest_field(field)}"


def nearest_field(field: str) -> str:
    """The field that a wrong name most likely means: one beside it, or one of that name in another section; `lr` is
    `learning_rate`."""
    names = list(field_names(Recipe))
    section, _, key = field.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in names if name.rpartition(".")[0] == section}
    within = [name for name in names if name.startswith(f"{section}.")]
    close = [beside[last] for last in difflib.get_close_matches(key, beside, n=1, cutoff=0.6)]
    for candidates in (_meant(key, beside.values()), close, _meant(key, within), _meant(key, names), names):
        if near := difflib.get_close_matches(field, candidates, n=1, cutoff=0.0):
            return near[0]
    raise AssertionError("a recipe has fields")


def _meant(key: str, names: Iterable[str]) -> list[str]:
    """Those whose last part is the key, or has its letters as initials."""
    parts = {name: name.rpartition(".")[2] for name in names}
    return [name for name, last in parts.items() if key in (last, "".join(word[0] for word in last.split("_")))]


def _origin(path: Path, assignments: Sequence[str], field: str) -> str:
    """Where a field's value came from: the last `--set` of it, around it or in it, else the file."""
    for assignment in reversed(assignments):
        assigned = assignment.partition("=")[0] + "."
        if f"{field}.".startswith(assigned) or assigned.startswith(f"{field}."):
            return f"--set {shown_assignment(assignment)}"
    return str(path)


def _is_private(field: str) -> bool:
    return any(f"{field}.".startswith(f"{section}.") for section in ENDPOINTS)


def shown_assignment(assignment: str) -> str:
    """As it may be told: without the value where that may be a key."""
    field = assignment.partition("=")[0]
    return f"{field}=..." if _is_private(field) else assignment


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def field_names(model: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Dotted names of every field, sections included."""
    for name, info in model.model_fields.items():
        yield prefix + name
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from field_names(info.annotation, f"{prefix}{name}.")
