"""PPO's critic, and the state of its optimizer, in a folder beside the policy."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from stages.errors import ModelError
from stages.model.architecture import check_finite
from stages.model.critic import ValueHead
from stages.model.loading import VisionLanguageModel
from stages.runtime import processes
from stages.training.parallel import Parallel

CRITIC = "critic"
"""Folder of the value head beside the policy's."""
WEIGHTS = "model.safetensors"
CONFIG = "config.json"


def open_critic(folder: Path, vlm: VisionLanguageModel) -> ValueHead:
    """The critic that lies in a training step's output, or where there is none a fresh one, whose values are 0.

    Raises:
        ModelError: it is of a model of another hidden size, or not finite.
    """
    weight_VH = vlm.model.get_output_embeddings().weight
    head = ValueHead(weight_VH.shape[1])
    path = folder / CRITIC
    if has_learned_critic(folder):
        hidden_size = json.loads((path / CONFIG).read_text())["hidden_size"]
        if hidden_size != head.in_features:
            raise ModelError(
                f"{path}: a critic of hidden size {hidden_size} beside a model of {head.in_features}; "
                "delete the folder to start a fresh one"
            )
        head.load_state_dict(load_file(path / WEIGHTS))
        check_finite(path, head)
    return head.to(weight_VH.device)


def has_learned_critic(folder: Path) -> bool:
    return (folder / CRITIC / WEIGHTS).is_file()


def save_critic(head: ValueHead, parallel: Parallel, folder: Path) -> None:
    """Write what `open_critic` reads; every process has to ask."""
    tensors = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    state = {name: parallel.whole_tensor(value).detach().cpu() for name, value in tensors.items()}
    if processes.is_main():
        (folder / CRITIC).mkdir(exist_ok=True)
        save_file(state, folder / CRITIC / WEIGHTS)
        config = json.dumps({"hidden_size": head.in_features}, indent=2)
        (folder / CRITIC / CONFIG).write_text(config + "\n")
