"""What tests of training share."""

from pathlib import Path

import pytest
import torch

from stages.model.logprobs import LogprobReader


@pytest.fixture
def rounding(monkeypatch):
    """Each pass rounds by its company, as bfloat16 does on most devices: up to 0.01 nats, by the tokens in it."""
    exact = LogprobReader.read

    def read(self, readings, *, temperature, layout=None):
        layout = layout or self.layout(readings)
        found = exact(self, readings, temperature=temperature, layout=layout)
        shift = (layout.tokens * 31 + len(layout.source_U) * 17) % 101 / 10_000
        return found._replace(logprobs_BT=torch.where(found.read_BT, found.logprobs_BT - shift, 0))

    monkeypatch.setattr(LogprobReader, "read", read)


@pytest.fixture
def offline_wandb(tmp_path_factory, monkeypatch):
    """A wandb that starts anew, keeps to itself and knows no login."""
    import wandb

    home = str(tmp_path_factory.mktemp("wandb"))
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, home)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("NETRC", str(Path(home) / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    yield
    wandb.teardown()
