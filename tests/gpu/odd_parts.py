"""Parts that end in every way there is, as a worker of `running` runs them: their names are the arguments."""

import sys
import time

from measured import Line
from running import Part, work_through


def one_line():
    yield Line("odd", "one", 1.0, "", True)


def no_longer():
    yield from one_line()
    raise ValueError("what is wrong\nin two lines")


def too_long():
    yield from one_line()
    time.sleep(600)


PARTS = {
    "whole": Part(one_line, 60),
    "too large": Part(one_line, 60, lambda: 2.0**40),
    "no longer": Part(no_longer, 60),
    "too long": Part(too_long, 0.5),
    "whole too": Part(one_line, 60),
}

if __name__ == "__main__":
    work_through({name: PARTS[name] for name in sys.argv[1:]})
