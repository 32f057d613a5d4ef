"""Small data sets, made here."""

import pytest
from datasets import Dataset, Features
from datasets.utils.logging import disable_progress_bar


@pytest.fixture
def parquet(tmp_path):
    """Write rows with `datasets` itself, as the hub's Parquet files are."""
    disable_progress_bar()

    def write(rows, features, name="data.parquet"):
        Dataset.from_list(rows, features=Features(features)).to_parquet(tmp_path / name)
        return tmp_path / name

    return write
