#!/usr/bin/env bash
# Builds sdist and wheel and tries both where nothing else is, without git: tests/package.sh PYTHON NAME..., where the
# sdist runs tests/test_NAME.py. Takes no part of an environment that is there; pip's own variables are honoured.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
most=1050 # MB of an environment with PyTorch's CPU build
tools="pytest pytest-xdist pytest-benchmark hypothesis mpmath h5py pandas"
python="$1"
quick=("${@:2}")
unset "${!PYTHON@}" # or a PYTHONPATH would show the checkout
export PIP_DISABLE_PIP_VERSION_CHECK=1 OMP_NUM_THREADS=1
cd "$work"

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

environment() { # of a name, with packages
    "$python" -m venv "$1"
    "$1/bin/python" -m pip install --quiet 'pip>=23'
    "$1/bin/python" -m pip install --quiet -c "$root/constraints.txt" "${@:2}"
}

environment build build
mkdir source # a copy: what an earlier build left in the checkout would hide what is missing from MANIFEST.in
sed 's:/$::' "$root/.gitignore" >ignored
tar -C "$root" -X ignored --exclude .git -cf - . | tar -C source -xf -
build/bin/python -m build --outdir dist source >log 2>&1 || { cat log; exit 1; }
say "built; are all files there, and all wheels of other systems?"
build/bin/python "$root/tests/archives.py" dist

environment clean torch dist/*.whl
size=$(($(du -sk clean | cut -f1) * 1024 / 1000000))
say "the wheel is installed: $size MB"
if clean/bin/python -c 'import sys, torch; sys.exit(bool(torch.version.cuda))'; then
    [ "$size" -le "$most" ] || { echo "expected at most $most MB"; exit 1; }
fi

mkdir place
cd place
cat >trial.py <<'END'
import importlib.util
import sys

sys.modules["nvtx"] = None  # as if it were not there
assert not [name for name in ("triton", "matplotlib", "sklearn") if importlib.util.find_spec(name)]
import numpy as np

import fastaae
from fastaae.cli import main

x = np.random.default_rng(0).random((200, 5)).astype(np.float32)
np.save("x.npy", x)
run = fastaae.train(fastaae.Config(hidden=(16,), batch_size=20, epochs=2, out_dir="arrays"), x, progress=False)
assert np.isfinite(run.model.log_likelihood(x, 1000, 0.2).mean)
assert main("train --dataset x.npy --hidden 16 --epochs 2 --out-dir blocked --quiet".split()) == 0
assert main(["demo"]) == 2  # which says what to install
END
../clean/bin/python trial.py
../clean/bin/fastaae --version
../clean/bin/fastaae train --dataset x.npy --hidden 16 --epochs 2 --out-dir file --quiet
say "it trains without Triton, nvtx, matplotlib and scikit-learn"

cd "$work"
tar -xzf dist/*.tar.gz
cd fastaae-*/
# shellcheck disable=SC2086  # these are words
../clean/bin/python -m pip install --quiet -c constraints.txt -e '.[demo]' $tools
GIT_CEILING_DIRECTORIES="$work" ../clean/bin/pytest -q -n auto --maxprocesses 4 --dist worksteal \
    $(printf 'tests/test_%s.py ' "${quick[@]}")
say "the sdist's quick tests pass in its own folder, without git"
