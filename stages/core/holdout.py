"""A seeded order that ends with what is held out, apart from the rest. Axis: N rows."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def order_heldout_last(groups_N: Sequence[Hashable], heldout: int, seed: int) -> list[int]:
    """Indices of N rows, shuffled, of which the last `heldout` share no group with the others.

    Which groups are held out is drawn too. Raises ValueError where no set of groups has that many rows; it names the
    nearest number that one has.
    """
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, group in enumerate(groups_N):
        rows[group].append(row)
    rng = np.random.default_rng(seed)
    names = list(rows)
    order = [names[i] for i in rng.permutation(len(names))]
    last: dict[int, Hashable | None] = {0: None}
    for name in order:  # `last[n]`: the last group of the first set found that has n rows
        if heldout in last:
            break
        for before in sorted(last, reverse=True):
            if before < heldout:
                last.setdefault(before + len(rows[name]), name)
    if heldout not in last:
        nearest = min(last, key=lambda reachable: (abs(reachable - heldout), reachable))
        raise ValueError(f"no set of groups has {heldout} of the {len(groups_N)} rows; the nearest has {nearest}")
    chosen: set[Hashable] = set()
    missing = heldout
    while missing:
        name = last[missing]
        chosen.add(name)
        missing -= len(rows[name])
    shuffled = rng.permutation(len(groups_N)).tolist()
    return sorted(shuffled, key=lambda row: groups_N[row] in chosen)
