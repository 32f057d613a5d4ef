"""What a command will load, hold and write, told by its dry run from recipe and configurations: no weight is read."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from stages.artifacts.columns import (
    DRAFTS,
    EPISODES,
    FLOATS,
    GROUPS,
    IDS,
    MASK,
    PREFERENCES,
    PROBLEMS,
    REPAIRS,
    ROLLOUTS,
    SCORES,
    TableSpec,
)
from stages.artifacts.manifests import OPTIMIZER_STATE, model_folder
from stages.artifacts.store import count_rows
from stages.core.objectives import has_critic
from stages.engines.loading import alone, device_bytes, engine_name
from stages.engines.vllm_engine import PROMPTS_AT_ONCE
from stages.engines.vllm_room import Room, check_room, room
from stages.model.footprint import Size, masters, moments, size_of, trained_elements, training, training_pass
from stages.model.loading import empty_checkpoint
from stages.recipe import Recipe
from stages.runtime import processes
from stages.training.resident import keeps_trainer
from stages.training.trainer import is_plain

logger = logging.getLogger(__name__)

PROMPT_TOKENS = 1024
"""Tokens that the estimate takes a prompt to have: those of an image of 1,000 tokens, and some text."""
TEXT_BYTES = 5
"""Of the text of one token, at most on the average: of English about 4.5."""
ALONE = ("rollout", "evaluate", "repair-set sheet")
"""Commands whose one engine has its devices to itself."""
_GIB = 2**30
VLLM_IMAGE_CACHES = 2 * 4 * _GIB
"""Of one engine: vLLM 0.32 keeps up to 4 GiB of preprocessed images where they are made, and as many where they are
read."""
_RESUMED = 12
"""Bytes that an element of a critic takes with AdamW's two moments, all in float32."""


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
        follows = [] if _embedded(step, recipe) else [Held("repair_model", "samples")]
        return [Held("policy", "samples"), *follows, Held("repair_model", "trains"), *reference]
    if step == "build-masks":
        repairs = recipe.masks.repairer == "model"
        # The embedded engine generates with what scores.
        audits = repairs and recipe.audit.auditor == "rules" and not _embedded(step, recipe)
        own = [Held("policy", "samples")] * audits + [Held("policy", "scores")]
        return [Held("repair_model", "samples")] * repairs + own
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
    rooms: Mapping[str, Room] = field(default_factory=dict)
    """Of each vLLM engine, where the device is known: what its share, which is in `rest`, leaves for a cache."""

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
    machine = Machine.here()
    need = on_device(step, recipe, sizes, machine.shards, spread=machine.spread, device=machine.device)
    tell_what_is_too_much(step, need, machine)
    return {
        "loads_gib": _gib(_loaded(step, recipe, given)),
        "device_gib": device_gib(need),
        "host_gib": _gib(on_host(step, recipe, sizes, machine.processes, machine.shards)),
        "disk_gib": _gib(_on_disk(step, recipe, sizes) | tables(step, recipe, _count(given))),
    }


class Machine(NamedTuple):
    """What a command runs on."""

    processes: int
    shards: int
    """Processes that what is trained is cut over; 1 where each has a whole copy."""
    spread: int
    """GPUs that the layers of each model are spread over, where one process sees several."""
    device: int | None
    """Bytes of one GPU; None where there is none."""

    @classmethod
    def here(cls) -> Machine:
        count = processes.count()
        spread = max(1, torch.cuda.device_count()) if count == 1 else 1
        return cls(count, count if processes.will_shard() else 1, spread, device_bytes())


def tell_what_is_too_much(step: str, need: Need, machine: Machine) -> None:
    """Warn where a device has less than the step takes of it, or an engine's share of it leaves no cache.

    Raises:
        RecipeError: an engine's share is less than its weights and one sequence.
    """
    for name, found in need.rooms.items():
        check_room(name, found)
    if machine.device is None or need.most <= machine.device:
        return
    gathers = any("gathered" in part for name, part in need.work.items() if name.endswith(" samples"))
    way = (
        "it gathers whole weights to sample: leave the launcher out, and one process spreads the layers over all GPUs"
        if gathers
        else "set trainer.lora, lower trainer.tokens_per_micro_batch or engine.rows_per_batch, or take more GPUs"
    )
    took, has = need.most / _GIB, machine.device / _GIB
    logger.warning("%s takes %.1f GiB of a device that has %.1f; %s", step, took, has, way)


def device_gib(need: Need) -> dict[str, Any]:
    told: dict[str, Any] = {
        "at_rest": {name: _gib(part) for name, part in need.rest.items()},
        "at_work_one_at_a_time": {name: _gib(part) for name, part in need.work.items()},
        "at_most": round(need.most / _GIB, 2),
    }
    if need.rooms:
        told["vllm_cache"] = {
            name: {"gib": round(found.cache / _GIB, 2), f"sequences_of_{found.tokens}": round(found.sequences, 1)}
            for name, found in need.rooms.items()
        }
    return told


def sizes_of(recipe: Recipe, given: Mapping[str, Path | None]) -> dict[str, Size]:
    """Of the models that are given, by option.

    Raises:
        ModelError: a model's configuration cannot be read.
    """
    return {name: _size(path, recipe) for name, path in given.items() if path is not None}


def on_device(
    step: str,
    recipe: Recipe,
    sizes: Mapping[str, Size],
    shards: int,
    *,
    spread: int = 1,
    device: int | None = None,
    together: bool = False,
) -> Need:
    """By model and by pass; what is trained lies in `shards`, and is whole on each device where it samples.

    One process that spreads layers over several devices has its part of the weights on each; a pass is counted whole.
    vLLM's engines are counted where the bytes of a `device` are known; none is alone where all steps' stay `together`.
    """
    dtype, trainer = recipe.model.dtype, recipe.trainer
    vllm = (alone(recipe) if step in ALONE and not together else recipe).engine.vllm
    rest: dict[str, Mapping[str, int]] = {}
    work: dict[str, Mapping[str, int]] = {}
    rooms: dict[str, Room] = {}
    for model in held(step, recipe):
        if model.option not in sizes:
            continue
        name, size = model.name, sizes[model.option]
        if model.use == "trains":
            rest[name] = training(size, trainer, dtype, shards=max(shards, spread))._asdict()
            tokens, sharded = trainer.tokens_per_micro_batch, shards > 1
            work[name] = training_pass(size, trainer, dtype, tokens, sharded=sharded)._asdict()
            if step != "train-policy" and _embedded(step, recipe):
                whole = {"gathered": training(size, trainer, dtype).weights} if sharded else {}
                work[f"{model.option} samples"] = whole | _sampling(size, recipe)
        elif model.use == "scores":
            rest[name] = {"weights": -(-size.at_rest(dtype, "none") // spread)}
            work[name] = {"pass": size.forward(dtype, recipe.engine.tokens_per_batch)}
        elif _embedded(step, recipe):
            rest[name] = {"weights": -(-size.at_rest(dtype, None) // spread)}
            work[name] = _sampling(size, recipe)
        elif device is not None:
            rooms[name] = room(size, vllm, dtype, device)
            rest[name] = {"share": rooms[name].share}
    return Need(rest, work, rooms)


def _embedded(step: str, recipe: Recipe) -> bool:
    """Whether our own engine samples, or none does; one of vLLM takes its share of a device, whatever the model."""
    return step in ("sft-repair", "train-policy") or engine_name(recipe) == "transformers"


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


def _loaded(step: str, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of files that each process reads, by model; of a model on the hub nothing is known before."""
    read: dict[str, int] = {}
    for model in held(step, recipe):
        path = given.get(model.option)
        if path is None:
            continue
        files = list(model_folder(path).glob("*.safetensors"))
        if model.use == "trains":
            files += path.glob(OPTIMIZER_STATE)
        read[model.name] = sum(file.stat().st_size for file in files)
    return read


def on_host(step: str, recipe: Recipe, sizes: Mapping[str, Size], count: int, shards: int) -> dict[str, int]:
    """Of `count` processes together, on a machine with GPUs; Python's and CUDA's own, some GiB a process, left out."""
    need = {"pixels": count * max(_pixels(model, step, recipe, sizes) for model in held(step, recipe))}
    engines = 0 if _embedded(step, recipe) else sum(model.use == "samples" for model in held(step, recipe))
    if engines:
        need["vllm_image_caches"] = count * engines * VLLM_IMAGE_CACHES
    if trained := _trained(step, recipe, sizes):
        need["saving"] = max(_saving(size, recipe) for size in trained)
        if shards > 1:
            need["loading"] = shards * sum(training(s, recipe.trainer, recipe.model.dtype).weights for s in trained)
    return need


def _pixels(model: Held, step: str, recipe: Recipe, sizes: Mapping[str, Size]) -> int:
    """Of the prompts that one process has encoded at once."""
    if model.option not in sizes:
        return 0
    of_a_shard = max(1, recipe.rollout.rows_per_shard // recipe.rollout.samples_per_problem)
    trained = {"sft-repair": recipe.sft.batch_size, "rl-repair": recipe.repair_rl.errors_per_iteration}
    prompts = {
        "samples": recipe.engine.tokens_per_batch / PROMPT_TOKENS if _embedded(step, recipe) else PROMPTS_AT_ONCE,
        "scores": trained.get(step, recipe.train.problems_per_step) if "reference" in model.name else of_a_shard,
        "trains": trained.get(step, recipe.train.problems_per_step),
    }
    return math.ceil(prompts[model.use] * PROMPT_TOKENS) * sizes[model.option].pixel_bytes


def tables(step: str, recipe: Recipe, count: int) -> dict[str, int]:
    """Bytes of the tables of responses that a step writes, if every response has the most tokens.

    `count` is of the problems that it is given, for `build-masks` of the rollouts, of which any may be an error.
    """
    rl, sheet, draws = recipe.repair_rl, recipe.repair_set, 1 + recipe.evaluate.draws + recipe.evaluate.image_removed
    rows: dict[str, dict[TableSpec[Any], int]] = {
        "rollout": {ROLLOUTS: recipe.rollout.samples_per_problem * min(count, recipe.rollout.problems or count)},
        "build-masks": {REPAIRS: count * recipe.masks.candidates, GROUPS: 2 * count},
        "evaluate": {SCORES: count * draws},
        "rl-repair": {
            DRAFTS: rl.drafts_per_problem * min(count, rl.problems or count),
            EPISODES: rl.iterations * rl.errors_per_iteration * rl.repairs_per_error,
        },
        "repair-set sheet": {DRAFTS: sheet.samples_per_problem * count},
    }
    optional = {"sampler_logprobs", recipe.train.scores}
    return {
        spec.name: math.ceil(of_table * recipe.rollout.max_new_tokens * _bytes_a_token(spec, optional))
        for spec, of_table in rows.get(step, {}).items()
    }


def _count(given: Mapping[str, Any]) -> int:
    """Rows of the rollouts or preferences, else of the problems that a command is given."""
    for name, spec in (("rollouts", ROLLOUTS), ("preferences", PREFERENCES), ("problems", PROBLEMS)):
        if given.get(name) is not None:
            return count_rows(given[name], spec)
    return 0


def _bytes_a_token(spec: TableSpec[Any], optional: Collection[str | None]) -> float:
    """In columns that have something for each token of a response, before they are compressed."""
    columns = [column for column in spec.columns if not column.optional or column.name in optional]
    lists = [column.type.value_type.bit_width / 8 for column in columns if column.type in (IDS, FLOATS, MASK)]
    texts = sum(column.name in ("text", "error") for column in columns)
    return sum(lists) + texts * TEXT_BYTES


def _saving(size: Size, recipe: Recipe) -> int:
    """Whole weights in float32, first with the rounded copies of them, then with AdamW's moments."""
    whole = size.checkpoint("float32")
    copies = whole - size.checkpoint(recipe.model.dtype)  # of 2 bytes, where 4 become 2
    return whole + max(copies, moments(size, recipe.trainer))


def _on_disk(step: str, recipe: Recipe, sizes: Mapping[str, Size]) -> dict[str, int]:
    trained = _trained(step, recipe, sizes)
    if not trained:
        return {}
    learns = 4 * sum(trained_elements(size, recipe.trainer) for size in trained)
    state = sum(moments(size, recipe.trainer) for size in trained)
    carried = {"adapter": learns} if recipe.trainer.lora else {"optimizer": state}
    model = {"model": sum(size.checkpoint(recipe.model.dtype) for size in trained)}
    if whole := sum(masters(size, recipe.trainer, recipe.model.dtype) for size in trained):
        carried["masters"] = whole
    if _has_critic(step, recipe):
        head = trained[0].text.hidden + 1
        carried["critic"] = _RESUMED * head
    resumed = learns + state + carried.get("critic", 0)
    return model | carried | {"checkpoints_until_it_is_done": 2 * resumed}


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
    tables: Mapping[str, int] = field(default_factory=dict)
    """Bytes of the tables of all rounds."""

    def gib(self) -> dict[str, Any]:
        """As `estimate` tells it of a command; of a device, at the step at which most is held."""
        machine = Machine.here()
        needs = self.on_device(machine.shards, spread=machine.spread, device=machine.device)
        step, need = max(needs.items(), key=lambda item: item[1].most)
        tell_what_is_too_much(step, need, machine)
        hosts = [on_host(name, self.recipe, self.sizes, machine.processes, machine.shards) for name in self._steps]
        return {
            "device_gib": {"during": step} | device_gib(need),
            "host_gib": _gib({name: max(host.get(name, 0) for host in hosts) for host in hosts for name in host}),
            "disk_gib": _gib({**self.disk(), **self.tables}),
        }

    def on_device(self, shards: int, *, spread: int = 1, device: int | None = None) -> dict[str, Need]:
        """By step: its own models and passes, and the models that other steps leave open (`ResidentModels`).

        An evaluation takes what a rollout takes.
        """
        needs = {
            step: on_device(step, self.recipe, self.sizes, shards, spread=spread, device=device, together=True)
            for step in self._steps
        }
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
            "train-policy": engines | own["train-policy"],
            "rl-repair": engines | left | own.get("rl-repair", {}),
        }
        if embedded and not plain:  # what no engine will follow is closed first
            del rest["train-policy"]["policy samples"]
            rest["rl-repair"].pop("repair_model samples", None)
        if embedded and plain and float32:  # what is trained samples
            for models in rest.values():
                del models["policy samples"]
            rest["rl-repair"].pop("repair_model samples", None)
        rooms = {name: found for need in needs.values() for name, found in need.rooms.items()}
        return {step: Need(rest[step], need.work, rooms) for step, need in needs.items()}

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
