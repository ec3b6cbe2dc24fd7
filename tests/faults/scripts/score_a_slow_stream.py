"""Score a slow stream, its partial sums saved every 20 ms where a place is given; prints every bit of the result.

python score_a_slow_stream.py SEED METHOD CHOOSES [STATE]

CHOOSES: 1 where the bandwidth is chosen too.
"""

import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from faults import inside

from fastaae import parzen_log_likelihood

torch.set_num_threads(1)
inside.parzen.SAVE_EVERY = 0.02
seed, method, chooses, *state = sys.argv[1:]
g = np.random.default_rng(int(seed))
samples, queries = g.random((40_000, 60), np.float32), g.random((300, 60), np.float32)


def stream(skip: int) -> Iterator[np.ndarray]:
    for k in range(skip, len(samples), 500):
        time.sleep(0.01)
        yield samples[k : k + 500]


options = {"validation": queries[:50], "sigmas": [0.1, 0.2, 0.3, 0.5]} if chooses == "1" else {"sigma": 0.3}
print("ready", flush=True)
options |= {"method": method, "block": 512, "state": state[0] if state else None}
r = parzen_log_likelihood(queries, stream, **options)
print(r.per_query.tobytes().hex(), r.error_bound.hex(), r.sigma.hex(), r.n_samples)
