"""What a user can be told. Each error gives the value, the place and the remedy."""

from __future__ import annotations


class DifferenceFeedbackError(Exception):
    """Base of every error that ends a command with one message and exit code 1."""


class RecipeError(DifferenceFeedbackError):
    """The recipe names something that does not exist or holds a value out of bounds."""


class DataError(DifferenceFeedbackError):
    """An input file or a row of it is not what its column spec says."""


class RowError(DataError):
    """One row cannot be used; `reason` says in a word why, as it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArtifactError(DifferenceFeedbackError):
    """An output folder is incomplete, or was made from other inputs."""


class ModelError(DifferenceFeedbackError):
    """A model folder is missing a part, or a model cannot do what a stage needs."""


class StepError(DifferenceFeedbackError):
    """A step that another command started did not come to its end."""


class EndpointError(DifferenceFeedbackError):
    """A served model refuses what it is asked, or too many of its verdicts cannot be had."""
