"""How responses are laid out for one forward pass: packed into a tree without repeats, or as padded rows.

Axes: N tokens that are read, U different ones of them, L tokens of a row, A position axes of the architecture's
rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.model.batches import EncodedPrompt, response_batch, vision_inputs
from stages.model.loading import VisionLanguageModel
from stages.model.tree_attention import Tree

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Reading:
    """A response some of whose tokens' log-probs are read, by default all of them.

    Responses to one problem share one prompt object. What comes after the last token that is read is left out.
    """

    prompt: EncodedPrompt
    ids: Sequence[int]
    read_T: Flags | None = None
    graph_T: Flags | None = None
    """Tokens whose log-prob has a gradient; by default those that are read. Others cost no graph."""
    with_next: bool = False
    """Whether this reading must share a forward pass with the reading after it, since one loss term reads both.

    DPO sets it on each error, whose repair follows; both have the same prompt object.
    """

    @property
    def tokens_read(self) -> NDArray[np.intp]:
        return np.arange(len(self.ids)) if self.read_T is None else np.flatnonzero(self.read_T)

    @property
    def has_graph(self) -> Flags:
        """Of each token that is read."""
        read = self.tokens_read
        return np.ones(len(read), np.bool_) if self.graph_T is None else self.graph_T[read]

    @property
    def inputs(self) -> list[int]:
        """The response's tokens that a pass needs as input: those before the last that is read."""
        read = self.tokens_read
        return list(self.ids[: read[-1]]) if len(read) else []


@dataclass(frozen=True)
class Layout:
    """One forward pass, and where the tokens that are read are predicted in it."""

    inputs: dict[str, Any]
    source_U: Tensor
    """Index of the position that predicts a token, over the flattened rows."""
    target_U: Tensor
    graph_U: Tensor
    """Bool, on the CPU, where it is looked at: the token's log-prob has a gradient."""
    where_N: Tensor
    """For each token that is read, reading by reading, its index among the U: common beginnings share an entry."""
    tokens: int
    """Tokens of the pass without padding."""
    slots: int
    """Tokens of the pass with padding."""


def packed_layout(vlm: VisionLanguageModel, readings: Sequence[Reading]) -> Layout:
    """One row `[prompt][responses] [prompt][responses] ...` in which every prompt and every common beginning of
    responses to it stands once."""
    row = _PackedRow(vlm)
    sources = [np.empty(0, np.intp)] * len(readings)
    for members in _by_prompt(readings):
        for index, source_T in zip(members, row.add([readings[i] for i in members]), strict=True):
            sources[index] = source_T[readings[index].tokens_read]
    inputs = row.inputs([readings[members[0]].prompt for members in _by_prompt(readings)])
    return _layout(vlm, inputs, readings, np.concatenate(sources), len(row.ids), len(row.ids))


def packed_prompts(vlm: VisionLanguageModel, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
    """One row of the prompts, each without its last token."""
    row = _PackedRow(vlm)
    for prompt in prompts:
        row.segment([], prompt.ids[:-1], prompt_positions(vlm, prompt)[:, :-1])
    return row.inputs(prompts)


def one_row(vlm: VisionLanguageModel, ids_N: Tensor, positions_AN: Tensor) -> dict[str, Any]:
    """A model's inputs of one packed row; what attends to what is said beside them."""
    return {
        "input_ids": ids_N[None],
        "position_ids": positions_AN if len(positions_AN) == 1 else positions_AN[:, None],
        # Four axes keep transformers from making a mask of its own.
        "attention_mask": torch.ones((1, 1, 1, 1), dtype=torch.bool, device=vlm.device),
    }


def padded_layout(vlm: VisionLanguageModel, readings: Sequence[Reading]) -> Layout:
    """A padded row for each response."""
    batch = response_batch(vlm, [reading.prompt for reading in readings], [reading.inputs for reading in readings])
    rows, width = batch.inputs["input_ids"].shape
    # The first response token is predicted at the prompt's last position.
    before = width - batch.response_mask_BT.shape[1] - 1
    sources = [row * width + before + reading.tokens_read for row, reading in enumerate(readings)]
    tokens = sum(map(_length, readings))
    return _layout(vlm, batch.inputs, readings, np.concatenate(sources), tokens, rows * width)


def packed_micro_batches(readings: Sequence[Reading], token_budget: int) -> Iterator[list[int]]:
    """Indices of readings whose packed rows hold at most `token_budget` tokens, or one reading that has more.

    Responses to one prompt stay together where the budget has room for all of them; readings that have to stay
    together count as one.
    """
    batch: list[int] = []
    filled, previous = 0, None
    for members in _by_prompt(readings):
        units = sorted(inseparable(readings, members), key=lambda unit: readings[unit[0]].inputs)
        whole = _packed_cost([readings[i] for unit in units for i in unit], None)
        if batch and filled + whole > token_budget >= whole:
            yield batch
            batch, filled = [], 0
        for unit in units:
            own = [readings[i] for i in unit]
            cost = _packed_cost(own, previous)
            if batch and filled + cost > token_budget:
                yield batch
                batch, filled = [], 0
                cost = _packed_cost(own, None)
            batch += unit
            filled += cost
            previous = own[-1]
    if batch:
        yield batch


def padded_micro_batches(readings: Sequence[Reading], token_budget: int) -> Iterator[list[int]]:
    """Indices of readings of like lengths whose padded rows hold at most `token_budget` tokens, or one reading.

    Readings that have to stay together count as one, of the longest's length.
    """
    batch: list[int] = []
    prompt_width = response_width = 0
    units = inseparable(readings, range(len(readings)))
    for unit in sorted(units, key=lambda unit: max(_length(readings[i]) for i in unit)):
        prompt, response = len(readings[unit[0]].prompt.ids), max(len(readings[i].inputs) for i in unit)
        prompt_width, response_width = max(prompt_width, prompt), max(response_width, response)
        if batch and (prompt_width + response_width) * (len(batch) + len(unit)) > token_budget:
            yield batch
            batch = []
            prompt_width, response_width = prompt, response
        batch += unit
    if batch:
        yield batch


def inseparable(readings: Sequence[Reading], members: Iterable[int]) -> list[list[int]]:
    """The members' indices, in order, those that have to stay together in one list."""
    units: list[list[int]] = []
    goes_on = False
    for index in members:
        if goes_on:
            units[-1].append(index)
        else:
            units.append([index])
        goes_on = readings[index].with_next
    return units


def _packed_cost(readings: Sequence[Reading], previous: Reading | None) -> int:
    """Tokens that readings add to the row that ends with `previous`."""
    return sum(map(_added, readings, [previous, *readings]))


def _added(reading: Reading, previous: Reading | None) -> int:
    if previous is None or previous.prompt is not reading.prompt:
        return len(reading.prompt.ids) + len(reading.inputs)
    return len(reading.inputs) - _common(previous.inputs, reading.inputs)


def _length(reading: Reading) -> int:
    return len(reading.prompt.ids) + len(reading.inputs)


def _by_prompt(readings: Sequence[Reading]) -> list[list[int]]:
    """Indices of the readings of each prompt, prompts in the order of their first reading."""
    members: dict[int, list[int]] = {}
    for index, reading in enumerate(readings):
        members.setdefault(id(reading.prompt), []).append(index)
    return list(members.values())


@dataclass
class _PackedRow:
    """A row being filled, segment by segment."""

    vlm: VisionLanguageModel
    ids: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    """(A, tokens) of each segment."""
    paths: list[list[tuple[int, int]]] = field(default_factory=list)

    def add(self, readings: Sequence[Reading]) -> list[NDArray[np.intp]]:
        """Add responses to one prompt; for each, the position that predicts each of its tokens, one more than its
        inputs."""
        prompt = readings[0].prompt
        prompt_AL = prompt_positions(self.vlm, prompt)
        path = self.segment([], prompt.ids, prompt_AL)
        first_AL = prompt_AL.max() + 1 + torch.zeros((len(prompt_AL), 1), dtype=torch.long)
        responses = [reading.inputs for reading in readings]
        where: list[list[int]] = [[path[-1][1] - 1] for _ in readings]

        def grow(members: list[int], depth: int, path: list[tuple[int, int]]) -> None:
            """Add what comes after the `depth` tokens that all members begin with."""
            longer = sorted((m for m in members if len(responses[m]) > depth), key=responses.__getitem__)
            for _, group in groupby(longer, key=lambda m: responses[m][depth]):
                branch = list(group)
                # Sorted, so what the first and the last share, all share.
                stop = _common(responses[branch[0]], responses[branch[-1]])
                positions_AL = first_AL + torch.arange(depth, stop)
                own = self.segment(path, responses[branch[0]][depth:stop], positions_AL)
                for m in branch:
                    where[m].extend(range(*own[-1]))
                grow(branch, stop, own)

        grow(list(range(len(readings))), 0, path)
        return [np.array(positions) for positions in where]

    def segment(self, path: list[tuple[int, int]], ids: Sequence[int], positions_AL: Tensor) -> list[tuple[int, int]]:
        """Add tokens that attend to a path and to those before them; the path that ends with them."""
        start = len(self.ids)
        self.ids += ids
        self.positions.append(positions_AL)
        self.paths.append([*path, (start, len(self.ids))])
        return self.paths[-1]

    def inputs(self, prompts: Sequence[EncodedPrompt]) -> dict[str, Any]:
        """What the model takes; the prompts are the row's, in its order."""
        ids_L = torch.tensor(self.ids, device=self.vlm.device)
        positions_AL = torch.cat(self.positions, dim=-1).to(self.vlm.device)
        return one_row(self.vlm, ids_L, positions_AL) | {"tree": Tree(self.paths)} | vision_inputs(self.vlm, prompts)


def prompt_positions(vlm: VisionLanguageModel, prompt: EncodedPrompt) -> Tensor:
    """Rotary positions (A, L) of a prompt's tokens: one axis, or time, height and width in multimodal rotary models."""
    rope_index: Callable[..., Any] | None = getattr(vlm.model.base_model, "get_rope_index", None)
    if rope_index is None:
        return torch.arange(len(prompt.ids))[None]
    if not prompt.vision:
        return torch.arange(len(prompt.ids)).expand(3, -1)
    grids = {name: value for name, value in prompt.vision.items() if not name.startswith("pixel_values")}
    ids, types = torch.tensor([prompt.ids]), torch.tensor([prompt.token_types])
    return rope_index(input_ids=ids, mm_token_type_ids=types, **grids)[0][:, 0]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    differ = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))


def _layout(
    vlm: VisionLanguageModel,
    inputs: dict[str, Any],
    readings: Sequence[Reading],
    source_N: NDArray[np.intp],
    tokens: int,
    slots: int,
) -> Layout:
    targets_N = np.concatenate([np.asarray(reading.ids, np.intp)[reading.tokens_read] for reading in readings])
    pairs, where_N = np.unique(np.stack([source_N, targets_N]), axis=1, return_inverse=True)
    graph_U = np.zeros(pairs.shape[1], np.bool_)
    np.logical_or.at(graph_U, where_N, np.concatenate([reading.has_graph for reading in readings]))
    source_U, target_U, where = (torch.from_numpy(a).to(vlm.device) for a in (*pairs, where_N))
    return Layout(inputs, source_U, target_U, torch.from_numpy(graph_U), where, tokens, slots)
