"""The processes that `accelerate launch` started, or the one that there is: who writes, and work shared among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

Item = TypeVar("Item")
Result = TypeVar("Result")


def _state() -> PartialState:
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def index() -> int:
    """This process's number, from 0."""
    return int(_state().process_index)


def is_main() -> bool:
    """Whether this process writes files and speaks to the user."""
    return bool(_state().is_main_process)


def device() -> torch.device:
    """The device that this process computes on."""
    return _state().device


def will_shard() -> bool:
    """Whether the launch configuration cuts models that are trained into shards."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") or parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def wait() -> None:
    """Block until every process has called this."""
    _state().wait_for_everyone()


def count() -> int:
    return int(_state().num_processes)


def own(items: Sequence[Item]) -> Sequence[Item]:
    """This process's share of the items: every n-th one, from its own number, of n processes."""
    state = _state()
    return items[state.process_index :: state.num_processes]


def gather(items: list[Item]) -> list[Item]:
    """Join the lists of all processes, in the order of their numbers; every process calls this and gets the whole."""
    return gather_object(items) if count() > 1 else items


def spread(items: Sequence[Item], work: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
    """Each process works on its share; all get every result, in the order of the items."""
    return join(work(own(items)))


def join(share: list[Result]) -> list[Result]:
    """Put the results of each process's `own` share back into the order of the items; every process gets all."""
    processes = count()
    shares = gather([share])
    return [shares[i % processes][i // processes] for i in range(sum(map(len, shares)))]


def on_main(work: Callable[[], Result]) -> Result:
    """Do it on the main process alone and give all of them its result, or raise what it raised."""
    if count() == 1:
        return work()
    outcome: list[Any] = [_outcome(work) if is_main() else None]
    result, error = broadcast_object_list(outcome)[0]
    if error is not None:
        raise error
    return result


def _outcome(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:  # noqa: BLE001, every process raises it again
        return None, error
