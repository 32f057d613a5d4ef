"""A vision-language model: loading, prompts, batches, token log-probs."""

import sys

from stages.model.torchvision_ops import declare_missing_operators

declare_missing_operators()

from transformers.utils import logging  # noqa: E402, imports torchvision

if not sys.stderr.isatty():
    logging.disable_progress_bar()
