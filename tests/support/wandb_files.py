"""What wandb writes offline, read back."""

import json
import struct
import time


def records(file):
    """The records of a short `.wandb` file: a LevelDB log of protocol buffers, here within its first block."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at = file.read_bytes(), 7
    assert len(data) < 32768
    while at < len(data):
        _, length, _ = struct.unpack_from("<IHB", data, at)
        yield Record.FromString(data[at + 7 : at + 7 + length])
        at += 7 + length


def finished_records(file):
    """All of them: a process of wandb's own writes the file, and may come to its end after the run is told finished."""
    for _ in range(200):
        found = list(records(file))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.1)
    raise AssertionError(f"no exit among {[record.WhichOneof('record_type') for record in found]}")


def items_of(items):
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
