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
from stages.training.resident import keeps_trainer
from stages.training.trainer import is_plain

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
    sizes = sizes_of(recipe, {name: given.get(name) for name, _, _ in held(step, recipe)})
    if not sizes:
        return {}
    shards = _shards()
    return {
        "device_gib": _device_gib(on_device(step, recipe, sizes, shards)),
        "host_gib": _gib(_on_host(_trained(step, recipe, sizes), recipe, shards)),
        "disk_gib": _gib(_on_disk(step, recipe, sizes)),
    }


def _device_gib(need: Need) -> dict[str, Any]:
    return {
        "at_rest": {name: _gib(part) for name, part in need.rest.items()},
        "at_work_one_at_a_time": {name: _gib(part) for name, part in need.work.items()},
        "at_most": round(need.most / _GIB, 2),
    }


def _shards() -> int:
    return processes.count() if processes.will_shard() else 1


def sizes_of(recipe: Recipe, given: Mapping[str, Path | None]) -> dict[str, Size]:
    """Of the models that are given, by option.

    Raises:
        ModelError: a model's configuration cannot be read.
    """
    return {name: _size(path, recipe) for name, path in given.items() if path is not None}


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


@dataclass(frozen=True)
class LoopEstimate:
    """What `df loop` takes, whose models stay open from step to step."""

    recipe: Recipe
    sizes: Mapping[str, Size]
    """Of `policy`, and of `repair_model` where there is one."""
    rounds: int
    has_best: bool
    """Whether it validates, and keeps the best policy."""

    def gib(self) -> dict[str, Any]:
        """As `estimate` tells it of a command; of a device, at the step at which most is held."""
        shards = _shards()
        step, need = max(self.on_device(shards).items(), key=lambda item: item[1].most)
        hosts = [_on_host(_trained(name, self.recipe, self.sizes), self.recipe, shards) for name in self._steps]
        return {
            "device_gib": {"during": step} | _device_gib(need),
            "host_gib": _gib({name: max(host.get(name, 0) for host in hosts) for host in hosts for name in host}),
            "disk_gib": _gib(self.disk()),
        }

    def on_device(self, shards: int) -> dict[str, Need]:
        """By step: its own models and passes, and the models that other steps leave open (`ResidentModels`).

        An evaluation takes what a rollout takes.
        """
        needs = {step: on_device(step, self.recipe, self.sizes, shards) for step in self._steps}
        own = {step: dict(need.rest) for step, need in needs.items()}
        engines = own["rollout"] | own["build-masks"]
        scorer = {"policy scores": engines.pop("policy scores")}
        plain, float32 = is_plain(self.recipe.trainer), self.recipe.model.dtype == "float32"
        embedded = _embedded("rollout", self.recipe)
        if embedded and (plain or float32):
            scorer = {}  # what is trained scores, or what samples
        left = self._left_open(own["train-policy"]) if plain else {}
        rest = {
            "rollout": engines | left,
            "build-masks": engines | (left or scorer),
            "train-policy": engines | scorer | own["train-policy"],
            "rl-repair": engines | left | own.get("rl-repair", {}),
        }
        if embedded and plain and float32:  # what is trained samples
            for models in rest.values():
                del models["policy samples"]
            rest["rl-repair"].pop("repair_model samples", None)
        return {step: Need(rest[step], need.work) for step, need in needs.items()}

    def _left_open(self, trained: Mapping[str, Mapping[str, int]]) -> dict[str, Mapping[str, int]]:
        """Of the policy's training: the weights, and where the trainer goes on, moments and reference, no gradients."""
        parts = ("weights", "moments") if keeps_trainer(self.recipe) else ("weights",)
        left = {"policy trains": {part: trained["policy trains"][part] for part in parts}}
        reference = "policy_reference scores"
        return left | ({reference: trained[reference]} if keeps_trainer(self.recipe) and reference in trained else {})

    def disk(self) -> dict[str, int]:
        """Bytes of weights and optimizer states when they take most, by part.

        Policies are those of the rounds that are kept, of the best where there is one, and of the round under way.
        Repair models are the one in use, once it was trained here, and the one that is about to replace it. Checkpoints
        are of what is in training.
        """
        kept = self.recipe.loop.keep_rounds + self.has_best
        made, checkpoints = self._written("train-policy")
        if not self._repair_trainings:
            return {"policies": min(self.rounds, kept + 1) * made, "checkpoints_until_it_is_done": checkpoints}
        repairs, own_checkpoints = self._written("rl-repair")
        moments = [
            (min(self.rounds, kept + 1), 1, checkpoints),  # a policy in training
            (min(self.rounds - 1, kept), min(self._repair_trainings, 2), own_checkpoints),  # a repair model
        ]
        parts = [
            {"policies": n * made, "repair_models": m * repairs, "checkpoints_until_it_is_done": saved}
            for n, m, saved in moments
        ]
        return max(parts, key=lambda part: sum(part.values()))

    def _written(self, step: str) -> tuple[int, int]:
        """Bytes of the models that a training step leaves, and of the checkpoints that it goes on from until then."""
        parts = _on_disk(step, self.recipe, self.sizes)
        checkpoints = parts.pop("checkpoints_until_it_is_done")
        return sum(parts.values()), checkpoints

    @property
    def _repair_trainings(self) -> int:
        every = self.recipe.loop.repair_rl_every
        return 0 if every is None or "repair_model" not in self.sizes else (self.rounds - 1) // every

    @property
    def _steps(self) -> list[str]:
        return ["rollout", "build-masks", "train-policy", *(["rl-repair"] if self._repair_trainings else [])]


def _gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: round(value / _GIB, 2) for name, value in parts.items()}
