"""Task rewards of responses."""

from stages.reward.answers import score_answer

__all__ = ["score_answer"]
