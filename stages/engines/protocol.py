"""Generation behind one protocol, so that every stage runs on every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """Token ids that the responses are expected to resemble, as a repair resembles its error; empty where nothing is.

    An engine may read them ahead to be faster. Unless `Sampling.keep` is set they change no response and no log-prob.
    """


@dataclass(frozen=True)
class Sampling:
    """One sampled distribution: no top-p, no top-k, so that log-probs are those of what was sampled."""

    max_new_tokens: int
    temperature: float = 1.0
    """Divides the logits. At 0 decoding is greedy, and log-probs are of the distribution at temperature 1."""
    seed: int = 0
    keep: float | None = None
    """A token that a request's draft goes on with is taken where the sampled distribution gives it at least this
    probability; if None it is drawn as any other."""


@dataclass(frozen=True)
class Batch:
    """Requests that are sampled alike, and whose completions are wanted together."""

    requests: Sequence[Request]
    sampling: Sampling


@dataclass(frozen=True)
class Completion:
    """One response: its token ids, the end token included, and the log-prob of each in the sampled distribution, taken
    from a draft or drawn."""

    ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class ScoreRequest:
    """A response of T given tokens, which the model is asked to score behind a prompt."""

    prompt: Prompt
    ids: Sequence[int]
    against: Prompt | None = None
    """A second prompt, of as many tokens: `divergences` compare the distributions behind the two prompts.

    None asks for no comparison.
    """


class TokenScores(NamedTuple):
    """Scores of one response: three lists of T values in nats, one value for each of its T tokens."""

    logprobs: list[float]
    entropies: list[float]
    """Entropy of the distribution that the token is drawn from."""
    divergences: list[float]
    """KL(p || q), where the token is drawn from p behind `prompt` and from q behind `against`; 0 without `against`."""


def overflows(model: str) -> ModelError:
    """A model's finite weights have led to logits that are not: there is no distribution to sample from."""
    return ModelError(
        f"{model}: its logits hold NaN or infinity; set model.dtype=float32, or take a checkpoint from before it "
        "diverged"
    )


class Generator(Protocol):
    """An engine: samples responses and scores given ones. It returns results in the order of the requests."""

    codec: Codec
    """Turns problems into the model's tokens, and tokens into texts."""
    embedded: bool
    """Whether the engine generates with a model in this process, which a trainer may be training at the same time."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        """Sample `n` completions of each request; the same seed gives the same completions.

        A request gets an empty list where its prompt and `max_new_tokens` together exceed the model's length: a prompt
        that is cut may lose an image.

        Raises:
            ModelError: the model's logits are not finite.
        """
        ...

    def stream(self, batches: Iterable[Batch]) -> Iterator[list[list[Completion]]]:
        """`generate` of each batch, in order.

        An engine may take later batches while an earlier one ends, so that it never waits for a batch's longest
        response; only then is a batch made. `generate` can be called in between.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], *, temperature: float) -> list[TokenScores]:
        """Teacher-forced log-probs of given responses, of the distribution that `generate` samples from."""
        ...

    def follow(self, save: Callable[[Path], None], folder: Path) -> None:
        """Generate from here on with the weights that the trainer holds; every process has to call this.

        An engine that shares the trainer's model does nothing. Any other calls `save(folder)`, which writes the weights
        as a checkpoint to the new folder `folder`, reads them from there, and deletes `folder`.
        """
        ...
