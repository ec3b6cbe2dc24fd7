"""One of two ranks that train; a fault hits the second one when it comes to a point for the (at + 1)th time.

python rank_that_trains.py FAULT POINT AT ARGUMENT ... of the command line
"""

import itertools
import os
import sys
import time
from pathlib import Path

import torch
from faults import inside
from faults.processes import suffer

from fastaae import cli

torch.set_num_threads(1)
inside.ranks.SILENCE = 8.0
fault, point, at, *arguments = sys.argv[1:]
passes = itertools.count()


def hit() -> None:
    if next(passes) != int(at):
        return
    Path("hit").write_text(str(time.time()))
    suffer(fault, RuntimeError("injected"))


if os.environ["RANK"] == "1":
    owner, name = inside.where_a_rank_is(point)
    original = getattr(owner, name)

    def hit_before(*arguments, **options):
        hit()
        return original(*arguments, **options)

    setattr(owner, name, hit_before)
sys.exit(cli.main(arguments))
