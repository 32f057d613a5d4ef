"""What a command will load, hold and write, told by its dry run from recipe and configurations: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.artifacts.manifests import model_folder
from stages.core.objectives import has_critic
from stages.engines.loading import engine_name
from stages.model.footprint import Size, masters, size_of, trained_elements, training, training_pass
from stages.model.loading import empty_checkpoint
from stages.recipe import Recipe
from stages.runtime import processes

PROMPT_TOKENS = 1024
"""Tokens that the estimate takes a prompt to have: those of an image of 1,000 tokens, and some text."""
_GIB = 2**30
_MOMENTS, _RESUMED = 8, 12
"""Bytes that a trained element takes in AdamW's file, and that with its own float32 weight, as in a checkpoint that a
run goes on from."""


class Held(NamedTuple):
    """A model that a command has in memory."""

    option: str
    """The command's option that names the model's folder: `policy`, `repair_model` or `model`."""
    use: Literal["samples", "scores", "trains"]
    role: str | None = None
    """What it is beside the option's own model, where it is another that begins as that one."""

    @property
    def name(self) -> str:
        return f"{self.role or self.option} {self.use}"


def held(step: str, recipe: Recipe) -> list[Held]:
    """The models that the command `step` holds at once, each with its use; a KL's reference is one that scores."""
    if step == "sft-repair":
        return [Held("model", "trains")] + [Held("model", "samples")] * (recipe.audit.auditor != "none")
    if step == "rl-repair":
        reference = [Held("repair_model", "scores", "repair_model_reference")] * _anchored(
            recipe.repair_rl.objective.kl_coef, recipe
        )
        return [Held("policy", "samples"), Held("repair_model", "trains"), *reference]
    if step == "build-masks":
        return [Held("repair_model", "samples")] * (recipe.masks.repairer == "model") + [Held("policy", "scores")]
    if step == "train-policy":
        apart = recipe.train.kl_reference == "start" and recipe.train.objective.kl_coef > 0
        reference = [Held("policy", "scores", "policy_reference")] * (
            apart or _anchored(recipe.train.objective.kl_coef, recipe)
        )
        prm = [Held("policy", "trains", "process_reward_model")] * (recipe.train.advantage == "prime")
        return [Held("policy", "trains"), *reference, *prm]
    sampled = {"repair-set sheet": "policy", "rollout": "policy", "evaluate": "model"}
    return [Held(sampled[step], "samples")] if step in sampled else []


@dataclass(frozen=True)
class Need:
    """Bytes on one device, each part by purpose."""

    rest: Mapping[str, Mapping[str, int]]
    """Bytes that each model takes between passes, by purpose; the models lie there together, so these add up."""
    work: Mapping[str, Mapping[str, int]]
    """Bytes that each kind of pass takes while it runs, by purpose; passes run one at a time, so the largest counts."""

    @property
    def most(self) -> int:
        rest = sum(sum(part.values()) for part in self.rest.values())
        return rest + max((sum(part.values()) for part in self.work.values()), default=0)


def estimate(step: str, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
    """GiB on a device by model and purpose, on the host, and on disk; `given` are the command's options.

    Empty where it holds no model.

    Raises:
        ModelError: a model's configuration cannot be read.
    """
    models = held(step, recipe)
    names = {model.option for model in models}
    sizes = {name: _size(given[name], recipe) for name in names if given.get(name) is not None}
    if not sizes:
        return {}
    shards = processes.count() if processes.will_shard() else 1
    need = on_device(step, recipe, sizes, shards)
    return {
        "device_gib": {
            "at_rest": {name: _gib(part) for name, part in need.rest.items()},
            "at_work_one_at_a_time": {name: _gib(part) for name, part in need.work.items()},
            "at_most": round(need.most / _GIB, 2),
        },
        "host_gib": _gib(_on_host(_trained(step, recipe, sizes), recipe, shards)),
        "disk_gib": _gib(_on_disk(step, recipe, sizes)),
    }


def on_device(step: str, recipe: Recipe, sizes: Mapping[str, Size], shards: int) -> Need:
    """By model and by pass; what is trained lies in `shards`, and is whole on each device where it samples."""
    dtype, trainer = recipe.model.dtype, recipe.trainer
    rest: dict[str, Mapping[str, int]] = {}
    work: dict[str, Mapping[str, int]] = {}
    for model in held(step, recipe):
        if model.option not in sizes:
            continue
        name, size = model.name, sizes[model.option]
        if model.use == "trains":
            rest[name] = training(size, trainer, dtype, shards=shards)._asdict()
            tokens, sharded = trainer.tokens_per_micro_batch, shards > 1
            work[name] = training_pass(size, trainer, dtype, tokens, sharded=sharded)._asdict()
            if step != "train-policy" and _embedded(step, recipe):
                whole = {"gathered": training(size, trainer, dtype).weights} if sharded else {}
                work[f"{model.option} samples"] = whole | _sampling(size, recipe)
        elif model.use == "scores":
            rest[name] = {"weights": size.at_rest(dtype, "none")}
            work[name] = {"pass": size.forward(dtype, recipe.engine.tokens_per_batch)}
        elif _embedded(step, recipe):
            rest[name] = {"weights": size.at_rest(dtype, None)}
            work[name] = _sampling(size, recipe)
    return Need(rest, work)


def _embedded(step: str, recipe: Recipe) -> bool:
    """Whether our own engine samples; one of vLLM takes its share of a device, whatever the model."""
    return step == "sft-repair" or engine_name(recipe) == "transformers"


def _sampling(size: Size, recipe: Recipe) -> dict[str, int]:
    dtype, engine = recipe.model.dtype, recipe.engine
    tokens = PROMPT_TOKENS + recipe.rollout.max_new_tokens
    return {
        "keys_and_values": size.keys_and_values(dtype, engine.rows_per_batch, tokens),
        "pass": size.forward(dtype, engine.tokens_per_batch),
    }


def _anchored(kl_coef: float, recipe: Recipe) -> bool:
    return kl_coef > 0 and recipe.trainer.lora is None


def _size(path: Path, recipe: Recipe) -> Size:
    return size_of(empty_checkpoint(model_folder(path), recipe.model.trust_remote_code))


def _on_host(trained: list[Size], recipe: Recipe, shards: int) -> dict[str, int]:
    """Of all processes together, on a machine with GPUs."""
    if not trained:
        return {}
    saving = max(_saving(size, recipe) for size in trained)
    loading = sum(training(size, recipe.trainer, recipe.model.dtype).weights for size in trained)
    return {"saving": saving} | ({"loading": shards * loading} if shards > 1 else {})


def _saving(size: Size, recipe: Recipe) -> int:
    """Whole weights in float32, first with the rounded copies of them, then with AdamW's moments."""
    whole = size.checkpoint("float32")
    copies = whole - size.checkpoint(recipe.model.dtype)  # of 2 bytes, where 4 become 2
    return whole + max(copies, _MOMENTS * trained_elements(size, recipe.trainer))


def _on_disk(step: str, recipe: Recipe, sizes: Mapping[str, Size]) -> dict[str, int]:
    trained = _trained(step, recipe, sizes)
    if not trained:
        return {}
    learns = sum(trained_elements(size, recipe.trainer) for size in trained)
    carried = {"optimizer": _MOMENTS * learns} if recipe.trainer.lora is None else {"adapter": 4 * learns}
    model = {"model": sum(size.checkpoint(recipe.model.dtype) for size in trained)}
    if whole := sum(masters(size, recipe.trainer, recipe.model.dtype) for size in trained):
        carried["masters"] = whole
    if _has_critic(step, recipe):
        head = trained[0].text.hidden + 1
        carried["critic"] = _RESUMED * head
        learns += head
    return model | carried | {"checkpoints_until_it_is_done": 2 * _RESUMED * learns}


def _trained(step: str, recipe: Recipe, sizes: Mapping[str, Size]) -> list[Size]:
    return [sizes[model.option] for model in held(step, recipe) if model.use == "trains"]


def _has_critic(step: str, recipe: Recipe) -> bool:
    if step == "rl-repair":
        return has_critic(recipe.repair_rl.objective.algorithm)
    return step == "train-policy" and recipe.train.has_critic


def loop_disk(
    recipe: Recipe, policy: Path, repair_model: Path | None, *, rounds: int, has_best: bool
) -> dict[str, int]:
    """Bytes of a loop's weights and optimizer states when they take most, by part.

    Policies are those of the rounds that are kept, of the best where there is one, and of the round under way. Repair
    models are the one in use, once it was trained here, and the one that is about to replace it. Checkpoints are of
    what is in training.

    Raises:
        ModelError: a model's configuration cannot be read.
    """
    every, kept = recipe.loop.repair_rl_every, recipe.loop.keep_rounds + has_best
    made, checkpoints = _written("train-policy", recipe, {"policy": policy})
    if repair_model is None or every is None or every >= rounds:
        return {"policies": min(rounds, kept + 1) * made, "checkpoints_until_it_is_done": checkpoints}
    repairs, own_checkpoints = _written("rl-repair", recipe, {"repair_model": repair_model})
    moments = [
        (min(rounds, kept + 1), 1, checkpoints),  # a policy in training
        (min(rounds - 1, kept), min((rounds - 1) // every, 2), own_checkpoints),  # a repair model
    ]
    parts = [
        {"policies": n * made, "repair_models": m * repairs, "checkpoints_until_it_is_done": saved}
        for n, m, saved in moments
    ]
    return max(parts, key=lambda part: sum(part.values()))


def _written(step: str, recipe: Recipe, given: Mapping[str, Path]) -> tuple[int, int]:
    """Bytes of the models that a training step leaves, and of the checkpoints that it goes on from until then."""
    parts = _on_disk(step, recipe, {name: _size(path, recipe) for name, path in given.items()})
    checkpoints = parts.pop("checkpoints_until_it_is_done")
    return sum(parts.values()), checkpoints


def _gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: round(value / _GIB, 2) for name, value in parts.items()}
