"""What a command will load, hold and write, told by its dry run from recipe and configurations: no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from stages.artifacts.manifests import model_folder
from stages.engines.loading import engine_name
from stages.model.footprint import Size, masters, size_of, trained_elements, training, training_pass
from stages.model.loading import empty_checkpoint
from stages.recipe import Recipe
from stages.runtime import processes

PROMPT_TOKENS = 1024
"""Tokens that the estimate takes a prompt to have: those of an image of 1,000 tokens, and some text."""
_GIB = 2**30
_MOMENTS, _RESUMED = 8, 12
"""Bytes that a trained element takes in AdamW's file, and in a checkpoint that a run goes on from."""


class Held(NamedTuple):
    """A model that a command has in memory."""

    option: str
    """The command's option that names the model's folder: `policy`, `repair_model` or `model`."""
    use: Literal["samples", "scores", "trains"]


def held(step: str, recipe: Recipe) -> list[Held]:
    """The models that the command `step` holds at once, each with its use; a KL's reference is one that scores."""
    if step == "sft-repair":
        return [Held("model", "trains")] + [Held("model", "samples")] * (recipe.audit.auditor != "none")
    if step == "rl-repair":
        reference = [Held("repair_model", "scores")] * _anchored(recipe.repair_rl.objective.kl_coef, recipe)
        return [Held("policy", "samples"), Held("repair_model", "trains"), *reference]
    if step == "build-masks":
        return [Held("repair_model", "samples")] * (recipe.masks.repairer == "model") + [Held("policy", "scores")]
    if step == "train-policy":
        apart = recipe.train.kl_reference == "start" and recipe.train.objective.kl_coef > 0
        reference = [Held("policy", "scores")] * (apart or _anchored(recipe.train.objective.kl_coef, recipe))
        prm = [Held("policy", "trains")] * (recipe.train.advantage == "prime")
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
    trained = [sizes[model.option] for model in models if model.use == "trains"]
    return {
        "device_gib": {
            "at_rest": {name: _gib(part) for name, part in need.rest.items()},
            "at_work_one_at_a_time": {name: _gib(part) for name, part in need.work.items()},
            "at_most": round(need.most / _GIB, 2),
        },
        "host_gib": _gib(_on_host(trained, recipe, shards)),
        "disk_gib": _gib(_on_disk(trained, recipe)),
    }


def on_device(step: str, recipe: Recipe, sizes: Mapping[str, Size], shards: int) -> Need:
    """By model and by pass; what is trained lies in `shards`, and is whole on each device where it samples."""
    dtype, trainer = recipe.model.dtype, recipe.trainer
    rest: dict[str, Mapping[str, int]] = {}
    work: dict[str, Mapping[str, int]] = {}
    for model in held(step, recipe):
        if model.option not in sizes:
            continue
        name, size = f"{model.option} {model.use}", sizes[model.option]
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


def _on_disk(trained: list[Size], recipe: Recipe) -> dict[str, int]:
    if not trained:
        return {}
    learns = sum(trained_elements(size, recipe.trainer) for size in trained)
    carried = {"optimizer": _MOMENTS * learns} if recipe.trainer.lora is None else {"adapter": 4 * learns}
    model = {"model": sum(size.checkpoint(recipe.model.dtype) for size in trained)}
    if whole := sum(masters(size, recipe.trainer, recipe.model.dtype) for size in trained):
        carried["masters"] = whole
    return model | carried | {"checkpoints_until_it_is_done": 2 * _RESUMED * learns}


def loop_disk(recipe: Recipe, policy: Path) -> int:
    """Bytes that the weights of a loop take at most: rounds that are kept, the best, and the one that is being made.

    Raises:
        ModelError: the policy's configuration cannot be read.
    """
    parts = _on_disk([_size(policy, recipe)], recipe)
    checkpoints = parts.pop("checkpoints_until_it_is_done")
    return (recipe.loop.keep_rounds + 2) * sum(parts.values()) + checkpoints


def _gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: round(value / _GIB, 2) for name, value in parts.items()}
