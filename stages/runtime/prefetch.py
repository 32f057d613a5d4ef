"""Work done ahead in the background."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in order, each made in one background thread while the one before is in use.

    What making an item raises is raised here in its turn. Closing the generator waits for the item under way.
    """
    iterator, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as executor:
        upcoming = executor.submit(next, iterator, end)
        while (item := upcoming.result()) is not end:
            upcoming = executor.submit(next, iterator, end)
            yield item  # type: ignore[misc]
