"""What only a clock can decide of a step on a GPU, as prototypes: what proves itself goes into kernels/.
bench/gpu.sh experiments times them, bench/kernels.py --experiments counts registers, tests/test_experiments.py compares
them with a plain step; bench/LOG.md says what each is predicted to gain.

A step makes the same launches over and over, of the same buffers. So it is recorded once, as a list of them
(launches.py), and each idea is another list that leaves the same weights.
"""
