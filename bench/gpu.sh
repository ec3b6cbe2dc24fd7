#!/bin/sh
# Everything that only a GPU can say about one part of fastaae, in minutes: tests, sanitizers, timings; one file of results.
#   bench/gpu.sh step | parzen | agree | experiments      where there are a GPU, PyTorch, Triton and pytest; writes bench/results/*.json
#   bench/gpu.sh --dry-run ...              the same way on a CPU, tiny, in Triton's interpreter; writes nothing
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
package=$(mktemp -d)  # this checkout as a package, whether or not one is installed
trap 'rm -rf "$package"' EXIT
mkdir "$package/fastaae"
ln -s "$root"/fastaae/* "$package/fastaae/"
ln -sfn "$root/kernels" "$package/fastaae/kernels"
case "$*" in *--dry-run*) export TRITON_INTERPRET=1 ;; esac
cd "$root"
PYTHONPATH="$package${PYTHONPATH:+:$PYTHONPATH}" "${PYTHON:-python3}" bench/gpu.py "$@"
