"""Imports `stages.model` first: peft imports transformers, see there."""

import stages.model  # noqa: F401
