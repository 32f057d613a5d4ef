"""Imports what the commands import, that which transformers leaves to the first model it loads too."""

from pathlib import Path

import df_cli.main  # noqa: F401
import stages.study.ablation  # noqa: F401
import terse_configurations  # noqa: F401
from stages.model.loading import load_codec

load_codec(Path(__file__).parents[2] / "data" / "digits" / "base")
