"""One of two ranks that score a stream; a fault hits the second one before its block AT.

python rank_that_scores.py FAULT AT

What the estimator said is left in RANK.txt.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from faults.processes import suffer

from fastaae import parzen_log_likelihood

fault, at = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()


def stream() -> Iterator[np.ndarray]:
    for k in range(20):
        if rank == 1 and k == at:
            suffer(fault, OSError("the disk is gone"))
            if fault == "NaN":
                yield np.full((512, 3), np.nan, np.float32)
        yield np.full((512, 3), k, np.float32)
        time.sleep(0.05 if rank else 0.2)


try:
    parzen_log_likelihood(np.zeros((4, 3)), stream(), 1.0, block=512, distributed=True, timeout=3)
    said = "finished"
except BaseException as error:
    said = f"{type(error).__name__}: {error}"
Path(f"{rank}.txt").write_text(said)
time.sleep(3 * rank)  # torchrun stops the others when one exits
os._exit(1)
