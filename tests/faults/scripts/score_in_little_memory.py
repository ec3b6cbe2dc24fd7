"""Score samples twice, the second time with little address space left beyond what the process holds.

python score_in_little_memory.py '[MEGABYTES, COLUMNS, QUERIES, SAMPLES, BLOCK, METHOD]'

Prints a line of JSON: "refused" and what the error said, or "scored" and by how much the two results differ beyond
their error bounds.
"""

import json
import resource
import sys

import numpy as np
import torch

from fastaae import parzen_log_likelihood

torch.set_num_threads(1)
megabytes, d, m, n, block, method = json.loads(sys.argv[1])
g = np.random.default_rng(0)
samples, queries = g.random((n, d), np.float32), g.random((m, d), np.float32)
parzen_log_likelihood(queries[:2], samples[:600], 0.3)
whole = parzen_log_likelihood(queries, samples, 1.0, method=method)
held = next(int(s.split()[1]) * 1024 for s in open("/proc/self/status") if s.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (held + megabytes * 2**20,) * 2)
try:
    r = parzen_log_likelihood(queries, samples, 1.0, method=method, block=block)
except MemoryError as error:
    print(json.dumps(["refused", str(error)]))
else:
    gap = np.abs(r.per_query - whole.per_query).max()
    print(json.dumps(["scored", float(gap - r.error_bound - whole.error_bound)]))
