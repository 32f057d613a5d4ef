"""Rows of the artifacts that stages hand each other, by the type of each column; a test holds them to `columns`.

A column that a file may lack is not required to write a row; `iterate_rows` gives null for it.
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypeAlias, TypedDict

AnyRow: TypeAlias = dict[str, Any]
"""A row that another type stands for, as `Problem` or `Measure`, or one that nobody passes on."""
FinishReason = Literal["stop", "length"]


class RolloutRow(TypedDict):
    """A row of `rollouts`."""

    problem_id: str
    sample: int
    ids: list[int]
    sampler_logprobs: list[float]
    finish_reason: FinishReason
    reward: float | None
    text: str


class RepairRow(TypedDict):
    """A row of `repairs`."""

    problem_id: str
    sample: int
    candidate: int
    ids: list[int]
    text: str
    reward: float | None
    cost: float
    flagged: bool | None
    category: str | None
    evidence: NotRequired[str | None]
    selection: str


class GroupMember(TypedDict):
    """A row of `groups` before the policy has read its tokens."""

    problem_id: str
    sample: int
    role: str
    in_pair: bool
    ids: list[int]
    reward: float
    mask: list[bool]
    finish_reason: FinishReason
    sampler_logprobs: NotRequired[list[float] | None]
    entropies: NotRequired[list[float] | None]
    image_kls: NotRequired[list[float] | None]
    answer_gaps: NotRequired[list[float] | None]


class GroupRow(GroupMember):
    """A row of `groups`."""

    old_logprobs: list[float]


class DraftRow(TypedDict):
    """A row of `drafts`."""

    problem_id: str
    sample: int
    ids: list[int]
    text: str
    right_response: str | None
    right_texts: NotRequired[list[str] | None]


class EpisodeRow(TypedDict):
    """A row of `episodes`."""

    iteration: int
    problem_id: str
    sample: int
    attempt: int
    error: str
    text: str
    reward: float | None
    cost: float
    gate_c1: bool | None
    gate_audit: bool | None
    category: str | None
    evidence: NotRequired[str | None]
    repair_reward: float | None


class DroppedRow(TypedDict):
    """A row of `dropped`."""

    problem_id: str
    reason: str
    detail: NotRequired[str | None]


class ValuesRow(TypedDict):
    """A row of `values`."""

    problem_id: str
    sample: int
    values: list[float]


class OldLogprobsRow(TypedDict):
    """A row of `old_logprobs`."""

    problem_id: str
    sample: int
    role: str
    old_logprobs: list[float]


class MetricRow(TypedDict):
    """A row of `metrics`."""

    step: int
    metric: str
    value: float


class SampleRow(TypedDict):
    """A row of `samples`."""

    problem_id: str
    attempt: int
    answer: str
    error: str
    text: str
    reward: float | None
    cost: float
    flagged: NotRequired[bool | None]
    category: NotRequired[str | None]


class ScoreRow(TypedDict):
    """A row of `scores`."""

    problem_id: str
    kind: str | None
    mode: str
    draw: int
    text: str
    reward: float | None


class AuditSampleRow(TypedDict):
    """A row of `audit_sample`."""

    episode_id: str
    stratum: str
    population: int
    drawn: int


class AgreementRow(TypedDict):
    """A row of `audit_agreement`."""

    section: str
    estimate: str
    measure: str
    value: float | None
    low: float | None
    high: float | None
    n: int
    note: str | None
