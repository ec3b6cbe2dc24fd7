"""The process that reads a MATLAB file: python matreader.py FILE BYTES NAME ... writes 0.npy, 1.npy, ... to its folder.

Names that end in ? may be missing. It is run by its path and needs no torch: it imports nothing of fastaae.
"""

import errno
import math
import os
import sys
import threading
from contextlib import suppress

import numpy as np

ROOM, SECONDS = 3 * 2**27, 600  # of memory, which SciPy takes to unpack zeros, and of processor time
CLASSES = {"double": 8, "single": 4, "logical": 1, **{f"{u}int{8 * n}": n for u in ("", "u") for n in (1, 2, 4, 8)}}


def main(path: str, limit: str, *names: str) -> None:
    """Write the variables to 0.npy, 1.npy, ... in the working directory; exits with a one-line message otherwise."""
    limit_bytes = int(limit)
    try:
        import scipy.io
    except ImportError as error:
        sys.exit(f"reading a .mat file needs SciPy ({error}): pip install 'fastaae[demo]'")
    _limit(ROOM + 2 * limit_bytes)
    try:
        declared = scipy.io.whosmat(path, appendmat=False)
        own = [name.removesuffix("?") for name in names]
        wanted = [variable for variable in declared if variable[0] in own]
        there = [variable[0] for variable in wanted]
        if missing := [o for o, name in zip(own, names, strict=True) if o not in there and (o == name or not there)]:
            has = [variable[0][:50] for variable in declared[:20]]
            sys.exit(f"no variables {missing[:9]}, it has {has}: save all of them in one file")
        for name, shape, kind in wanted:
            if kind not in CLASSES or min(shape, default=1) < 0:
                sys.exit(f"{name!r} is {kind} of shape {shape}, expected a full numeric array")
        if (size := sum(math.prod(shape) * CLASSES[kind] for _, shape, kind in wanted)) > limit_bytes:
            sys.exit(f"{', '.join(there)} declare {size} bytes, at most {limit_bytes} are accepted")
        arrays = scipy.io.loadmat(path, appendmat=False, variable_names=there)
        for k, name in enumerate(own):
            if name not in there:
                continue
            if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype.kind not in "biuf":
                sys.exit(f"{name!r} cannot be read as real numbers: save it as an array of them")
            try:
                np.save(f"{k}.npy", arrays[name], allow_pickle=False)
            except OSError:  # of which NumPy does not say why
                os._exit(errno.ENOSPC)
    except Exception as error:  # a damaged file can raise nearly anything
        said = " ".join(str(error)[:1000].split())
        sys.exit(f"not readable ({type(error).__name__}: {said}), expected a MATLAB file")


def _limit(more: int) -> None:
    """Let this process take so much more memory, and its time, where the platform can hold it to that."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
        limits = {resource.RLIMIT_AS: pages * resource.getpagesize() + more, resource.RLIMIT_CPU: SECONDS}
        for what, most in (limits | {resource.RLIMIT_CORE: 0}).items():
            hard = resource.getrlimit(what)[1]
            resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))


if __name__ == "__main__":  # standard input ends with the process that wants the arrays
    threading.Thread(target=lambda: os.read(0, 1) or os._exit(1), daemon=True).start()
    main(*sys.argv[1:])
