"""Keys and values of what a batch of rows has read, in memory that is allocated once, and attention to them.

Axes: R rows that there is memory for, B rows in use, S slots of a row, N tokens of a pass, Q of the row with the most,
K key-value heads, G query heads that share one, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

SLOT_MULTIPLE = 16
"""Rows are read up to a multiple of it, which kernels on a GPU want of a mask."""
_GROWTH = 1.5


@dataclass
class KeyValueCache:
    """Row r holds its tokens in the slots 0, 1, ...; what lies behind them is never attended to."""

    rows: int
    slots: int = 0
    """Of a row; more are made when they are needed."""
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Keys and values of each layer, both (R, S, K, D), where the layer is."""

    def reserve(self, slots: int) -> None:
        """Make room for so many tokens in every row."""
        if slots <= self.slots:
            return
        self.slots = -(-max(slots, int(self.slots * _GROWTH)) // SLOT_MULTIPLE) * SLOT_MULTIPLE
        for index, pair in self._layers.items():
            self._layers[index] = self._grown(pair[0]), self._grown(pair[1])

    def move(self, sources: NDArray[np.int64], targets: NDArray[np.int64], slots: int) -> None:
        """Copy the first slots of rows over those of others."""
        for pair in self._layers.values():
            source, target = (torch.from_numpy(rows).to(pair[0].device) for rows in (sources, targets))
            for whole in pair:
                whole[target, :slots] = whole[source, :slots]

    def write(self, layer: int, slots_W: Tensor, key_WKD: Tensor, value_WKD: Tensor) -> None:
        """Put tokens into slots that are counted through all rows."""
        if layer not in self._layers:
            self._layers[layer] = self._empty(key_WKD), self._empty(value_WKD)
        for whole, new in zip(self._layers[layer], (key_WKD, value_WKD), strict=True):
            whole.flatten(0, 1).index_copy_(0, slots_W, new)

    def read(self, layer: int, rows: int, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, K, S, D) of the first rows, up to a slot."""
        keys, values = self._layers[layer]
        return keys[:rows, :slots].transpose(1, 2), values[:rows, :slots].transpose(1, 2)

    def _empty(self, like_WKD: Tensor) -> Tensor:
        # Zeros: what is masked out is multiplied by 0 all the same.
        return like_WKD.new_zeros((self.rows, self.slots, *like_WKD.shape[1:]))

    def _grown(self, whole: Tensor) -> Tensor:
        grown = whole.new_zeros((self.rows, self.slots, *whole.shape[2:]))
        grown[:, : whole.shape[1]] = whole
        return grown


@dataclass
class CachedPass:
    """What a pass over one packed row does with the cache: its tokens are kept, and read again with all before them."""

    cache: KeyValueCache
    slots_W: Tensor
    """Slot that each kept token goes to: row r's slot s is number r S + s."""
    source_W: Tensor | None = None
    """Index, among the pass's N tokens, of each kept token; None where all N are kept in their order."""
    block: Block | None = None
    """How the pass attends to tokens that were kept before; None where it attends to none of them."""

    def keep(self, layer: int, key_1KND: Tensor, value_1KND: Tensor) -> None:
        key_NKD, value_NKD = key_1KND[0].transpose(0, 1), value_1KND[0].transpose(0, 1)
        if self.source_W is not None:
            source_W = self.source_W.to(key_NKD.device)
            key_NKD, value_NKD = key_NKD[source_W], value_NKD[source_W]
        self.cache.write(layer, self.slots_W.to(key_NKD.device), key_NKD, value_NKD)

    def attend(self, layer: int, query_1HND: Tensor, scaling: float | None) -> Tensor:
        """(1, N, H, D): each token attends to its row up to its own slot.

        The query heads that share a key-value head stand side by side as queries, so no head is repeated.
        """
        block = self.block
        assert block is not None
        keys, values = self.cache.read(layer, block.rows, block.slots)
        rows, heads, _, size = keys.shape
        groups = query_1HND.shape[1] // heads
        query_NHD = query_1HND[0].transpose(0, 1)
        query_BQHD = query_NHD if block.place_BQ is None else query_NHD[block.place_BQ.to(keys.device)]
        query_BKFD = query_BQHD.reshape(rows, block.width, heads, groups, size).permute(0, 2, 3, 1, 4).flatten(2, 3)
        output_BKFD = scaled_dot_product_attention(
            query_BKFD, keys, values, attn_mask=block.mask(groups, keys), scale=scaling
        )
        output_BQHD = output_BKFD.unflatten(2, (groups, block.width)).permute(0, 3, 1, 2, 4).flatten(2, 3)
        output_XHD = output_BQHD.flatten(0, 1)
        return (output_XHD if block.where_N is None else output_XHD[block.where_N.to(keys.device)])[None]


@dataclass
class Block:
    """The tokens of a pass as the last ones of their rows."""

    slot_BQ: Tensor
    """Slot in its row of each of the row's Q tokens; a token attends up to its own slot."""
    slots: int
    """Slots of each row that are read, from the first."""
    place_BQ: Tensor | None = None
    """Index among the N tokens of each row's q-th token, any behind a row's last one; None where every row has Q."""
    where_N: Tensor | None = None
    """Index of each of the N tokens among the B x Q; None where every row has Q."""
    _masks: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.slot_BQ.shape[0]

    @property
    def width(self) -> int:
        return self.slot_BQ.shape[1]

    def mask(self, groups: int, keys: Tensor) -> Tensor:
        """(B, 1, G x Q, S) to be added to the scores, made once a pass."""
        key = groups, keys.device
        if key not in self._masks:
            slot_BQ1 = self.slot_BQ.to(keys.device)[..., None]
            behind_BQS = torch.arange(self.slots, device=keys.device) > slot_BQ1
            mask_BQS = keys.new_zeros(behind_BQS.shape).masked_fill_(behind_BQS, float("-inf"))
            self._masks[key] = mask_BQS.repeat(1, groups, 1)[:, None]
        return self._masks[key]
