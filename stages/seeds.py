"""Independent seeds from one."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What randomness is for; a number is never given to another purpose."""

    HELDOUT_REPAIRS = 2
    SFT_ORDER = 3
    ROLLOUTS = 4
    ROLLOUT_PROBLEMS = 5
    CANDIDATES = 6
    RL_PROBLEMS = 7
    RL_DRAFTS = 8
    TEXT_ONLY = 9
    RL_ORDER = 10
    RL_REPAIRS = 11
    C1 = 12
    GROUP_ORDER = 13
    EVALUATION = 14
    ADAPTERS = 15
    REFERENCE_KINDS = 20
    SIBLINGS = 21
    AUDIT_SAMPLE = 22
    SHEET_PROBLEMS = 30
    SHEET_DRAFTS = 31
    REPAIR_SET_ORDER = 32
    REPAIRED_ERRORS = 40
    VLLM_REQUESTS = 50


def derive_seed(seed: int, purpose: Purpose, *path: int) -> int:
    """A 63-bit seed for one purpose of a run; `path` tells its shards, iterations or epochs apart."""
    return int(np.random.SeedSequence([seed, purpose, *path]).generate_state(2, np.uint32).view(np.uint64)[0] >> 1)
