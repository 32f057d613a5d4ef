"""Generation behind one protocol, so that every stage runs on every engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from stages.errors import ModelError
from stages.model.codec import Codec
from stages.model.prompts import Prompt


@dataclass(frozen=True)
class Request:
    """`n` independent responses to one prompt."""

    prompt: Prompt
    n: int = 1
    draft_ids: Sequence[int] = ()
    """What the responses will nearly be, where that is known. It changes none of them: an engine may only be faster."""


@dataclass(frozen=True)
class Sampling:
    """One sampled distribution: no top-p, no top-k, so that log-probs are those of what was sampled."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 is greedy decoding; log-probs are then those at temperature 1."""
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    """One response: its token ids, the end token included, and the sampler's log-prob of each."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class ScoreRequest:
    """A response whose log-probs under the model are wanted."""

    prompt: Prompt
    ids: Sequence[int]
    against: Prompt | None = None
    """One of as many tokens that the distributions are compared with; none if None."""


class TokenScores(NamedTuple):
    """Of one response, a value a token, all in nats."""

    logprobs: list[float]
    entropies: list[float]
    """Of the distribution that each token is drawn from."""
    divergences: list[float]
    """KL(that || the one behind the request's `against`); 0 where there is none."""


def overflows(model: str) -> ModelError:
    """A model's finite weights have led to logits that are not: there is no distribution to sample from."""
    return ModelError(
        f"{model}: its logits hold NaN or infinity; set model.dtype=float32, or take a checkpoint from before it "
        "diverged"
    )


class Generator(Protocol):
    """What an engine does. Results are in the order of the requests."""

    codec: Codec
    """Of the model's prompts and responses."""
    embedded: bool
    """Whether it generates with a model of this process, which may be the one that is trained."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` completions of each request; the same seed gives the same completions.

        A request whose prompt and `max_new_tokens` are more than the model has room for gets none: a prompt that is cut
        may lose an image.

        Raises:
            ModelError: the model's logits are not finite.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[TokenScores]:
        """Teacher-forced log-probs of given responses, of the distribution that `generate` samples from."""
        ...

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        """Generate with the weights that training has come to; every process has to ask.

        `save` writes them as a checkpoint to a folder; one that is written anew, and removed, is `folder`.
        """
        ...
