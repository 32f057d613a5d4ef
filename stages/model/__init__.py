"""A vision-language model: loading, prompts, batches, token log-probs."""

from stages.model.torchvision_ops import declare_missing_operators

declare_missing_operators()
