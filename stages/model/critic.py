"""PPO's critic: a value head on the policy's backbone. Axes: U tokens, H hidden size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class ValueHead(nn.Linear):
    """From the hidden state that predicts a token to the value before it, in float32 under any autocast.

    A fresh one says `center` of every token: the mean reward, so that what is left to learn is what tells tokens
    apart (our choice). Steps that moved the weights towards the mean would scatter the values on their way.
    """

    center: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1)
        self.register_buffer("center", torch.zeros(()))

    def reset_parameters(self) -> None:
        """Called once by `nn.Linear`."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_UH: Tensor) -> Tensor:
        """Values (U,), in units of reward."""
        with torch.autocast(hidden_UH.device.type, enabled=False):
            return linear(hidden_UH.float(), self.weight.float(), self.bias.float()).squeeze(-1) + self.center
