"""The smallest inputs of every command."""

from pathlib import Path

from PIL import Image

from stages.artifacts.problems import encode_image

ROOT = Path(__file__).parents[2]
PROBLEM = {
    "problem_id": "p0",
    "question": "Sum?",
    "images": [encode_image(Image.new("RGB", (4, 4)))],
    "answer": "7",
    "kind": None,
}
PAIR = PROBLEM | {"error": "6", "repair": "7"}
ROLLOUT = {
    "problem_id": "p0",
    "sample": 0,
    "ids": [1],
    "sampler_logprobs": [-1.0],
    "finish_reason": "stop",
    "reward": 0.0,
    "text": "6",
}
GROUP = {
    "problem_id": "p0",
    "sample": 0,
    "role": "error",
    "in_pair": True,
    "ids": [1],
    "reward": 0.0,
    "mask": [True],
    "old_logprobs": [-1.0],
    "finish_reason": "stop",
}
MODEL_FILES = ("config.json", "tokenizer_config.json", "processor_config.json", "model.safetensors")
INPUTS = {
    "repair-set sheet": "--problems problems.parquet --policy model",
    "sft-repair": "--repair-set repair_set.parquet --model model",
    "rl-repair": "--problems problems.parquet --policy model --repair-model model --repair-set repair_set.parquet",
    "rollout": "--problems problems.parquet --policy model",
    "build-masks": "--rollouts rollouts --problems problems.parquet --repair-model model --policy model",
    "train-policy": "--groups groups --problems problems.parquet --policy model",
    "evaluate": "--problems problems.parquet --model model",
}
OPTIONS = {command: f"{inputs} --recipe digits" for command, inputs in INPUTS.items()}


def listing(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))
