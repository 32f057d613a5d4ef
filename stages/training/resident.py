"""Models that stay open from stage to stage: a policy's new weights go from the trainer to the engines in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.artifacts.manifests import model_folder
from stages.engines.loading import embedded_engine, engine_name, open_model, open_scorer
from stages.engines.models import Models
from stages.engines.protocol import Generator
from stages.engines.transformers_engine import TransformersEngine
from stages.engines.vllm_engine import VllmEngine
from stages.model.codec import Codec
from stages.model.loading import VisionLanguageModel
from stages.recipe import Recipe
from stages.runtime import processes
from stages.training.trainer import Trainer, is_plain


def keeps_trainer(recipe: Recipe) -> bool:
    """Whether a policy's trainer goes on with the next round: no critic, and no reference that moves on with it."""
    moves = recipe.train.objective.kl_coef > 0 and recipe.train.kl_reference != "start"
    return is_plain(recipe.trainer) and not recipe.train.has_critic and not moves


class ResidentModels(Models):
    """Opens a model once, and follows a policy from round to round: for stages of one recipe in one process.

    vLLM reads the new weights from their files. The embedded engine takes them from the trainer, unless adapters,
    compiled layers or several processes make of the model what no engine generates with: it is then opened from the
    files. So is a trainer with a critic, or with a reference that moves on with the rounds.
    """

    def __init__(self) -> None:
        self._codecs: dict[Path, Codec] = {}
        self._engines: dict[tuple[Path, bool], Generator] = {}
        """By checkpoint, and whether the weights are as they are trained."""
        self._trainer: tuple[Path, Trainer] | None = None
        """The last one, and the step that its weights lie in."""

    def codec(self, path: Path, recipe: Recipe) -> Codec:
        if path not in self._codecs:
            self._codecs[path] = super().codec(path, recipe)
        return self._codecs[path]

    def engine(self, path: Path, recipe: Recipe, *, as_trained: bool = False) -> Generator:
        key = path, as_trained or recipe.model.dtype == "float32" or engine_name(recipe) == "vllm"
        if key not in self._engines:
            self._engines[key] = self._opened(*key, recipe)
        return self._engines[key]

    def engine_alone(self, path: Path, recipe: Recipe) -> Generator:
        """None is alone: the others stay open."""
        return self.engine(path, recipe)

    def scorer(self, path: Path, recipe: Recipe) -> Generator:
        """The one that generates, which is open for rollouts."""
        return self.engine(path, recipe, as_trained=True)

    def sampler(self, vlm: VisionLanguageModel, path: Path, recipe: Recipe) -> Generator:
        """vLLM's is the one that is open for repairs, which goes on with what was trained."""
        return self.engine(path, recipe) if engine_name(recipe) == "vllm" else super().sampler(vlm, path, recipe)

    def _opened(self, path: Path, as_trained: bool, recipe: Recipe) -> Generator:
        if as_trained and is_plain(recipe.trainer) and engine_name(recipe) != "vllm":
            return embedded_engine(self._kept(path) or open_model(path, recipe, master_weights=True), recipe)
        return super().engine(path, recipe, as_trained=as_trained)

    def _close(self, path: Path, recipe: Recipe) -> None:
        """Leave off what lies of a checkpoint that is about to be trained and will not follow it."""
        for key in [key for key in self._engines if key[0] == path]:
            engine = self._engines[key]
            if isinstance(engine, VllmEngine):
                engine.close_scorer()
            elif not is_plain(recipe.trainer):
                del self._engines[key]

    def _kept(self, path: Path) -> VisionLanguageModel | None:
        """The model of a trainer that goes on, if its weights lie there."""
        return self._trainer[1].vlm if self._trainer is not None and self._trainer[0] == path else None

    def trainer(self, policy: Path, recipe: Recipe, make: Callable[[VisionLanguageModel], Trainer]) -> Trainer:
        self._close(policy, recipe)
        if self._trainer is not None and self._trainer[0] == policy:
            trainer = self._trainer[1]
            trainer.begin_again()
            return trainer
        engine = self._engines.get((policy, True))
        if isinstance(engine, TransformersEngine) and is_plain(recipe.trainer):
            return make(engine.vlm)
        return super().trainer(policy, recipe, make)

    def trained(self, trainer: Trainer, policy: Path, out: Path, recipe: Recipe) -> None:
        processes.wait()  # the main process completes the step
        self._trainer = (out, trainer) if keeps_trainer(recipe) else None
        trainer.optimizer.zero_grad()  # gradients take no room while others work
        self._codecs[out] = self._codecs.pop(policy)
        self._follow(policy, out, recipe, trainer.vlm if is_plain(recipe.trainer) else None)

    def replaced(self, old: Path, new: Path, recipe: Recipe) -> None:
        """Let engines of the model in step `old` generate with that in step `new`: a repair model was trained again."""
        self._codecs.pop(old, None)
        self._follow(old, new, recipe, None)

    def _follow(self, old: Path, new: Path, recipe: Recipe, vlm: VisionLanguageModel | None) -> None:
        """Engines of the old checkpoint go on with the new one, which `vlm` holds if it is given."""

        def scorer() -> Generator:
            return embedded_engine(vlm or open_scorer(new, recipe), recipe)

        for path, as_trained in [key for key in self._engines if key[0] == old]:
            engine = self._engines.pop((path, as_trained))
            if isinstance(engine, VllmEngine):
                engine.take(model_folder(new), scorer)
            elif vlm is not None and isinstance(engine, TransformersEngine):
                engine.take(vlm)
            else:
                continue
            self._engines[new, as_trained] = engine
