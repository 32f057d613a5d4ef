"""A checkpoint's weights, told from their bytes: not from where it lies, nor from the optimizer's state beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from stages.artifacts.digests import files_sha256
from stages.artifacts.manifests import MODEL, is_step, read_json, read_manifest

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


def weights_fingerprint(path: Path) -> str:
    """Hex SHA-256 over the weights of a checkpoint, or of the one in a training step's output, whose manifest knows it.

    A path that is not on this machine (a hub name) is its own fingerprint.

    Raises:
        ArtifactError: a step that is not complete.
    """
    if is_step(path):
        files = read_manifest(path)["files"]
        names = sorted(name for name in files if Path(name).parent == Path(MODEL) and name.endswith(".safetensors"))
        return _digest({Path(name).name: files[name]["sha256"] for name in names})
    if not path.is_dir():
        return str(path)
    names = _weight_files(path)
    return _digest(dict(zip(names, files_sha256(path / name for name in names), strict=True)))


def are_digests(*fingerprints: str) -> bool:
    """Whether all are of bytes: a hub's name says nothing of those on this machine."""
    return all(len(text) == 64 and set(text) <= set("0123456789abcdef") for text in fingerprints)


def _weight_files(folder: Path) -> list[str]:
    if (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    index = read_json(folder / INDEX) or {}
    return sorted(set(index.get("weight_map", {}).values()))


def _digest(parts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
