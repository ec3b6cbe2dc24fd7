"""The process that reads a MATLAB file: python matreader.py FILE BYTES NAME ... writes 0.npy, 1.npy, ... to its folder.

Run by its path, so that it needs no torch: it imports nothing of fastaae.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress

import numpy as np

CLASSES = {"double": 8, "single": 4, "logical": 1, **{f"{u}int{8 * n}": n for u in ("", "u") for n in (1, 2, 4, 8)}}


def main(path: str, limit: str, *names: str) -> None:
    """Write the variables to 0.npy, 1.npy, ... in the working directory; exits with a one-line message otherwise."""
    limit_bytes = int(limit)
    with suppress(ImportError, OSError, ValueError):  # not on this platform: then only the declared sizes count
        import resource

        for what, most in ((resource.RLIMIT_AS, 2 * limit_bytes + 2**30), (resource.RLIMIT_CORE, 0)):
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))
    try:
        import scipy.io
    except ImportError as error:
        sys.exit(f"reading a .mat file needs SciPy ({error}): pip install 'fastaae[demo]'")
    try:
        declared = scipy.io.whosmat(path, appendmat=False)
        wanted = [variable for variable in declared if variable[0] in names]
        if missing := [name for name in names if name not in [variable[0] for variable in wanted]]:
            sys.exit(f"no variables {missing}, it has {[v[0] for v in declared][:20]}: save all of them in one file")
        for name, shape, kind in wanted:
            if kind not in CLASSES or min(shape, default=1) < 0:
                sys.exit(f"{name!r} is {kind} of shape {shape}, expected a full numeric array")
        if (size := sum(math.prod(shape) * CLASSES[kind] for _, shape, kind in wanted)) > limit_bytes:
            sys.exit(f"{', '.join(names)} declare {size} bytes, at most {limit_bytes} are accepted")
        arrays = scipy.io.loadmat(path, appendmat=False, variable_names=names)
        for k, name in enumerate(names):
            if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype.kind not in "biuf":
                sys.exit(f"{name!r} cannot be read as real numbers: save it as an array of them")
            np.save(f"{k}.npy", arrays[name], allow_pickle=False)
    except Exception as error:  # a damaged file can raise nearly anything
        sys.exit(" ".join(f"not readable ({type(error).__name__}: {error}), expected a MATLAB file".split()))


if __name__ == "__main__":
    main(*sys.argv[1:])
