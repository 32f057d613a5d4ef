"""Sums to train on, a model that is hardly one, and an engine that says what is asked of it: half its answers wrong."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from data.strips.tiny_model import tiny_qwen2_5_vl, train_tokenizer
from stages.artifacts.columns import PROBLEMS
from stages.artifacts.problems import encode_image
from stages.artifacts.store import write_tables
from stages.engines.loading import embedded_engine, open_model, open_scorer
from stages.engines.models import Models
from stages.engines.protocol import Batch, Completion, Generator, Request, Sampling, ScoreRequest, TokenScores
from stages.model.loading import VisionLanguageModel, wrap_model
from stages.model.prompts import Prompt
from stages.recipe import Recipe, load_recipe
from stages.runtime import processes
from stages.runtime.batching import batched

QUESTION = re.compile(r"What is (\d+) \+ (\d+)\?")
ONE_IN = 4
"""Problems of which one has a picture."""
PICTURES = 16
PROBLEMS_PER_TABLE = 1024
SETTINGS = [
    "rollout.problems=null",
    "rollout.samples_per_problem=2",
    "rollout.max_new_tokens=32",
    "rollout.rows_per_shard=256",
    "masks.candidates=1",
    "train.problems_per_step=128",
]

_TEXT_MODEL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "layer_types": ["full_attention"],
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
}
_VISION_MODEL = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
    "fullatt_block_indexes": [0],
}


def recipe(*settings: str) -> Recipe:
    return load_recipe("digits", [*SETTINGS, *settings])


def sum_of(number: int) -> tuple[int, int]:
    """What problem `number` adds."""
    return 10 + number % 90, 10 + number // 90 % 90


def worked(left: int, right: int, result: int) -> str:
    return f"{left} + {right} = {result}. The answer is {result}."


def write_problems(path: Path, count: int) -> None:
    """`count` sums; one in `ONE_IN` comes with a picture of one visual token."""
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(PICTURES)]
    write_tables(path, PROBLEMS, _tables(count, [encode_image(picture) for picture in noise]))


def _tables(count: int, pictures: Sequence[dict[str, object]]) -> Iterator[pa.Table]:
    for numbers in batched(range(count), PROBLEMS_PER_TABLE):
        rows = [
            {
                "problem_id": f"sum-{number:07d}",
                "question": "What is {} + {}?".format(*sum_of(number)),
                "images": [] if number % ONE_IN else [pictures[number // ONE_IN % PICTURES]],
                "answer": str(sum(sum_of(number))),
            }
            for number in numbers
        ]
        yield pa.Table.from_pylist(rows, schema=PROBLEMS.schema())


def save_model(folder: Path) -> None:
    """A Qwen2.5-VL of one layer and 16 dimensions."""
    questions = [f"user\nWhat is {a} + {b}?\nassistant\n{worked(a, b, a + b)}" for a in range(10) for b in range(10)]
    larger = tiny_qwen2_5_vl(train_tokenizer(questions), seed=0)
    config = larger.model.config
    config.text_config.update(_TEXT_MODEL)
    config.vision_config.update(_VISION_MODEL)
    # What the larger model's was switched to; transformers refuses the name in a configuration.
    config.vision_config._attn_implementation = "sdpa"
    model = type(larger.model)(config)
    model.generation_config = larger.generation_config
    wrap_model(model, larger.processor).save(folder)


class SumModels(Models):
    """Opens adding engines of this class."""

    def __init__(self, made: Callable[[VisionLanguageModel, Recipe], Generator]) -> None:
        self._made = made

    def engine(self, path: Path, recipe: Recipe, *, as_trained: bool = False) -> Generator:
        return self._made(open_scorer(path, recipe) if as_trained else open_model(path, recipe), recipe)


class SumEngine:
    """Adds: every other answer is one too many, every repair and every continuation right. Scores with its model."""

    embedded = True

    def __init__(self, vlm: VisionLanguageModel, recipe: Recipe) -> None:
        self.codec = vlm
        self._scorer = embedded_engine(vlm, recipe)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        return processes.spread(requests, lambda share: [self._completions(request, sampling) for request in share])

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[list[Completion]]]:
        return (self.generate(batch.requests, batch.sampling) for batch in batches)

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[TokenScores]:
        return self._scorer.score(requests, temperature=temperature)

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        raise NotImplementedError("nothing here is trained")

    def _completions(self, request: Request, sampling: Sampling) -> list[Completion]:
        return [self._completion(request.prompt, k, sampling) for k in range(request.n)]

    def _completion(self, prompt: Prompt, k: int, sampling: Sampling) -> Completion:
        asked = QUESTION.search(prompt.text)
        assert asked is not None
        left, right = map(int, asked.groups())
        is_answer = not prompt.spliced_ids
        text = worked(left, right, left + right + (k % 2 if is_answer else 0))
        if prompt.spliced_ids and not prompt.tail:  # a beginning to go on with, not a draft to repair
            text = text.removeprefix(self.codec.decode(prompt.spliced_ids))
        ids = [*self.codec.tokenizer(text, add_special_tokens=False)["input_ids"], *self.codec.end_ids[:1]]
        assert len(ids) <= sampling.max_new_tokens
        return Completion(ids, [-1.0] * len(ids), "stop")
