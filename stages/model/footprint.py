"""Bytes that a model takes at rest, in training and in generation, as its configuration and the recipe have it.

Weights, gradients, optimizer, cache and files are exact; activations are those of layers as Qwen2.5-VL's, a few percent
off elsewhere. What a framework takes for itself (a CUDA context, fragments) is not in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from stages.model.head import CHUNKS_AT_ONCE_ON_ACCELERATORS, TOKENS_PER_CHUNK
from stages.model.mixed_precision import Trained, is_quantized, rounded_weights, text_weights, trained_weights
from stages.sections import TrainerSection

BYTES = {"float32": 4, "bfloat16": 2}
_MASTER = BYTES["float32"]
"""Of a trained weight, its gradient, each of AdamW's two moments, and an element of the residual stream."""
_IN_FOUR_BITS = 0.5 + (1 + 4 / 256) / 64
"""Of a weight in NF4: a scale for every 64, in eight bits, and one of those for every 256."""
_IN_EIGHT_BITS = 1 + 4 / 256
"""Of a moment in eight bits: a scale for every 256."""
_LEAST_IN_EIGHT = 4096
_ADAPTED = 7
"""Linear layers of a decoder layer: query, key, value, output, gate, up, down."""


@dataclass(frozen=True)
class Tower:
    """Layers of attention and a gated MLP between RMS norms; widths in elements."""

    hidden: int
    queries: int
    """Of all heads together, as `keys`, which is that of the values too."""
    keys: int
    mlp: int
    layers: int

    def saved(self, compute: int, *, frozen: bool, rank: int = 0) -> int:
        """Bytes a token that one layer keeps for its backward pass; products are of `compute` bytes an element.

        Each norm keeps its input and, for its own weight's gradient, what it made of it. Products keep their input:
        where autocast copies it, query, key, value, gate and up one each, else those of one input the same. Attention
        keeps queries, keys, values and its output, and that once more as it goes into a product; the MLP keeps gate,
        its activation, up, and their product; adapters of a rank the output of their first halves.
        """
        norms = 2 * (1 if frozen else 2) * _MASTER * self.hidden
        inputs = (2 if compute == _MASTER else 5) * self.hidden
        attention = 3 * self.queries + 2 * self.keys
        return norms + compute * (inputs + attention + 4 * self.mlp + _ADAPTED * rank)

    @property
    def weights(self) -> int:
        """Elements of one layer's products, biases left out."""
        return self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.mlp)


@dataclass(frozen=True)
class Size:
    """What the formulas take of a model."""

    text: Tower
    vision: Tower
    patches: int
    """Of an image, for each token that the text model reads of it."""
    pixel_bytes: int
    """Of a preprocessed image, for each of those tokens."""
    vocabulary: int
    longest: int
    """Tokens of the longest sequence that it was made for."""
    weights: int
    """Elements, tied ones once."""
    trained: Mapping[Trained, int]
    """Elements that are trained where the recipe trains so much."""
    rounded: Mapping[Trained, int]
    """Elements that then rest in the type of autocast."""
    in_eight: Mapping[Trained, int]
    """Elements that are trained and whose moments may rest in eight bits: not embeddings, nor fewer than 4,096."""
    adapter: int
    """Elements of adapters of rank 1 on every linear layer of the text model."""
    adapted: int
    """Elements of those layers' weights."""
    tied: bool
    """Whether the head's weights are the embeddings."""

    def at_rest(self, dtype: str, trained: Trained | None) -> int:
        """Bytes of the checkpoint's weights, as `load_model` of the same arguments holds them."""
        if trained is None:
            return self.weights * BYTES[dtype]
        return self.weights * _MASTER - self.rounded[trained] * (_MASTER - BYTES[dtype])

    def keys_and_values(self, dtype: str, rows: int, tokens: int) -> int:
        """Bytes of the cache of so many rows of so many tokens."""
        return rows * tokens * self.text.layers * 2 * self.text.keys * BYTES[dtype]

    def forward(self, dtype: str, tokens: int) -> int:
        """Bytes that come and go in a pass without gradients: a layer's MLP and residual stream, a chunk of logits."""
        at_work = tokens * (3 * self.text.mlp * BYTES[dtype] + 2 * self.text.hidden * _MASTER)
        return at_work + _logits(self, BYTES[dtype], tokens)

    def checkpoint(self, dtype: str) -> int:
        """Bytes of the weights in `model/` that a training step writes: those that autocast rounds are rounded."""
        return self.at_rest(dtype, "none")


class Training(NamedTuple):
    """Bytes on one device, between passes."""

    weights: int
    gradients: int
    moments: int
    """AdamW's two."""


def training(size: Size, section: TrainerSection, dtype: str, *, shards: int = 1) -> Training:
    """Bytes of weights, gradients and AdamW's moments on each of `shards` devices, when the recipe trains the model."""
    trained, learns = trained_weights(section), trained_elements(size, section)
    weights = size.at_rest(dtype, trained) + (learns - size.trained[trained]) * _MASTER
    if is_quantized(section):
        weights -= round(size.adapted * (BYTES[dtype] - _IN_FOUR_BITS))
    return Training(*(-(-whole // shards) for whole in (weights, learns * _MASTER, moments(size, section))))


def moments(size: Size, section: TrainerSection) -> int:
    """Bytes of AdamW's two of each element that is trained; those of adapters are taken to be of 4,096 or more."""
    learns = trained_elements(size, section)
    if section.optimizer_bits is None:
        return 2 * learns * _MASTER
    mode = trained_weights(section)
    eight = size.in_eight[mode] + learns - size.trained[mode]
    return round(2 * (eight * _IN_EIGHT_BITS + (learns - eight) * _MASTER))


class Pass(NamedTuple):
    """Bytes on one device that come and go with a forward and backward pass."""

    gathered: int
    """Weights that a device gathers from the shards of the others while it computes with them; 0 without shards."""
    casts: int
    """Autocast's copies of trained weights: of all layers, or under gradient checkpointing of one layer at a time; or
    the largest of the weights in four bits, made whole."""
    activations: int
    """What layers keep for the backward pass, and the gradients of the layer at work."""
    logits: int
    """One chunk of logits, and the head's weights where autocast copies them."""


def training_pass(size: Size, section: TrainerSection, dtype: str, tokens: int, *, sharded: bool = False) -> Pass:
    """Bytes of one forward and backward pass over `tokens` tokens; at worst every one of them belongs to an image."""
    return Pass(
        gathered=_gathered(size, dtype, trained_weights(section)) if sharded else 0,
        casts=_casts(size, section, dtype),
        activations=_activations(size, section, BYTES[dtype], tokens),
        logits=_logits(size, BYTES[dtype], tokens),
    )


def _casts(size: Size, section: TrainerSection, dtype: str) -> int:
    if is_quantized(section):  # one layer's, as it was
        return size.text.hidden * size.text.mlp * BYTES[dtype]
    cast = size.rounded["none"] - size.rounded[trained_weights(section)]
    return min(cast, size.text.weights if section.gradient_checkpointing else cast) * (BYTES[dtype] % _MASTER)


def trained_elements(size: Size, section: TrainerSection) -> int:
    """Of the checkpoint, or of its adapters."""
    rank = 0 if section.lora is None else section.lora.rank
    return size.trained[trained_weights(section)] + rank * size.adapter


def masters(size: Size, section: TrainerSection, dtype: str) -> int:
    """Bytes of the float32 weights that a training step writes beside a checkpoint that has rounded them."""
    rounded = size.adapted if section.lora else size.rounded["none"] - size.rounded[trained_weights(section)]
    return 0 if dtype == "float32" else rounded * _MASTER


def _gathered(size: Size, dtype: str, trained: Trained) -> int:
    """Embeddings and head, and two layers: the one at work and the next."""
    per_layer = BYTES[dtype] if trained == "none" else _MASTER
    root = size.vocabulary * size.text.hidden
    return root * _MASTER + (0 if size.tied else root * per_layer) + 2 * size.text.weights * per_layer


def _activations(size: Size, section: TrainerSection, compute: int, tokens: int) -> int:
    """What is kept for the backward pass, and the gradients of the layer that it is at."""
    frozen, rank = section.lora is not None, 0 if section.lora is None else section.lora.rank
    towers = [(size.text, tokens, size.text.saved(compute, frozen=frozen, rank=rank))]
    if trained_weights(section) == "all":
        towers.append((size.vision, tokens * size.patches, size.vision.saved(compute, frozen=False)))
    if section.gradient_checkpointing:
        kept = sum(read * tower.layers * _MASTER * tower.hidden for tower, read, _ in towers)
        kept += max(read * saved for _, read, saved in towers)
    else:
        kept = sum(read * tower.layers * saved for tower, read, saved in towers)
    at_the_end = tokens * size.text.hidden * _MASTER * (2 if frozen else 3)
    at_work = max(read * (compute * 3 * tower.mlp + 2 * _MASTER * tower.hidden) for tower, read, _ in towers)
    return kept + at_the_end + at_work


def _logits(size: Size, compute: int, tokens: int) -> int:
    """A chunk in the type of the product and twice in float32, and the head's weights where autocast copies them."""
    chunk = min(tokens, TOKENS_PER_CHUNK * CHUNKS_AT_ONCE_ON_ACCELERATORS)
    copied = size.vocabulary * size.text.hidden * compute if compute < _MASTER else 0
    return chunk * size.vocabulary * (compute + 2 * _MASTER) + copied


def size_of(model: Any) -> Size:
    """Of a transformers model, which may be on the meta device."""
    text, vision = model.config.get_text_config(), model.config.vision_config
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    linear = [module for module in model.get_decoder().modules() if isinstance(module, nn.Linear)]
    elements = {name: weight.numel() for name, weight in model.named_parameters()}
    modes: tuple[Trained, ...] = ("all", "text", "none")
    whole = sum(elements.values())
    trained: dict[Trained, set[Tensor]] = {"all": set(model.parameters()), "text": text_weights(model), "none": set()}
    return Size(
        text=Tower(
            text.hidden_size,
            text.num_attention_heads * head_size,
            text.num_key_value_heads * head_size,
            text.intermediate_size,
            text.num_hidden_layers,
        ),
        vision=Tower(
            vision.hidden_size,
            vision.hidden_size,
            vision.hidden_size,
            vision.intermediate_size,
            getattr(vision, "depth", None) or vision.num_hidden_layers,
        ),
        patches=_patches(model.config),
        pixel_bytes=_patches(model.config) * _values_of_a_patch(vision) * BYTES["float32"],
        vocabulary=text.vocab_size,
        longest=text.max_position_embeddings,
        weights=whole,
        trained={mode: sum(weight.numel() for weight in trained[mode]) for mode in modes},
        rounded={mode: sum(elements.get(name, 0) for name in rounded_weights(model, mode)) for mode in modes},
        in_eight={
            mode: sum(w.numel() for w in trained[mode] if w is not embeddings and w.numel() >= _LEAST_IN_EIGHT)
            for mode in modes
        },
        adapter=sum(module.in_features + module.out_features for module in linear),
        adapted=sum(module.in_features * module.out_features for module in linear),
        tied=head is embeddings,
    )


def _patches(config: Any) -> int:
    merged = getattr(config.vision_config, "spatial_merge_size", None)
    return int(merged or round(1 / getattr(config, "downsample_ratio", 1))) ** 2


def _values_of_a_patch(vision: Any) -> int:
    size = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    channels = getattr(vision, "in_channels", None) or vision.num_channels
    return int(channels * getattr(vision, "temporal_patch_size", 1) * size**2)
