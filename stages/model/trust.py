"""What a checkpoint may bring along: weights as safetensors, and code of its own only where the recipe wants it.

Nothing in it may name what lies elsewhere: transformers would ask the hub for it.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from transformers.utils.hub import cached_file

from stages.artifacts.weights import INDEX, WEIGHTS
from stages.errors import ModelError
from stages.untrusted.strings_within import named, texts

_CODE = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
"""Files whose `auto_map` names classes to import from the checkpoint, or from another one on the hub."""
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Where config.json and the parts in it say what computes them; `org/name` is code on the hub."""
_AUDIO = "audio_tokenizer"
_ADAPTERS = "adapter_config.json"


def check_trusted(path: Path | str, trust_remote_code: bool) -> None:
    """Refuse a checkpoint that would run code or be unpickled, before any part of it is loaded.

    A hub name's small files are fetched for that. `transformers` would take its own class in the place of a
    checkpoint's where it has one, and otherwise ask on the terminal; which of them it is depends on its version.

    Raises:
        ModelError: it names code, its own or on the hub, which `trust_remote_code` allows; it has adapters; it names
            weights of another format, or elsewhere.
    """
    for name in () if trust_remote_code else _CODE:
        code = sorted({text for value in named(_read(path, name), "auto_map") for text in texts(value)})
        if code:
            raise ModelError(
                f"{path}: {name} names code that comes with the checkpoint ({', '.join(code)}); read that code and "
                "set model.trust_remote_code=true, or remove auto_map from the file if transformers knows the model"
            )
    config = _read(path, "config.json")
    kernels = {text for name in _KERNELS for value in named(config, name) for text in texts(value) if "/" in text}
    if kernels and not trust_remote_code:
        raise ModelError(
            f"{path}: config.json names code on the hub ({', '.join(sorted(kernels))}); remove it, or read that code "
            "and set model.trust_remote_code=true"
        )
    for file in named(config, "transformers_weights"):
        raise ModelError(f"{path}: config.json names {file!r} as its weights; call that {WEIGHTS} and remove the entry")
    audio = _read(path, f"{_AUDIO}_config.json") is not None
    if audio or any(value is not None for value in named(_read(path, "processor_config.json"), _AUDIO)):
        raise ModelError(
            f"{path}: {f'{_AUDIO}_config.json' if audio else 'processor_config.json'} names an audio tokenizer, "
            "another checkpoint; audio is not read, take it out"
        )
    if _read(path, _ADAPTERS) is not None:
        raise ModelError(
            f"{path}: {_ADAPTERS} stands beside the weights, adapters are not read; add them to the weights "
            "(peft's merge_and_unload) and save the model, or take the file away"
        )
    index = _read(path, INDEX)
    for file in sorted({text for value in named(index, "weight_map") for text in texts(value)}):
        if PurePosixPath(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{path}: {INDEX} names {file!r}; weights are *.safetensors files beside it, other formats are not "
                "read: save the model again with save_pretrained"
            )


def _read(path: Path | str, name: str) -> Any:
    """The JSON of a local checkpoint's file, or of one on the hub; None where there is none.

    Raises:
        ModelError: it is not JSON, or there is no such checkpoint on the hub.
    """
    file = Path(path) / name
    if not Path(path).is_dir():
        try:
            found = cached_file(
                str(path),
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(
                f"{path}: no such model folder, nor to be had from the hub ({reason}); give a folder with config.json "
                "or a hub name org/model"
            ) from error
        file = Path(found or "")
    if not file.is_file():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{file}: not JSON ({error}); copy the checkpoint again") from error
