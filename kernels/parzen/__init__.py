"""Parzen-window sums over all pairs of queries and samples: pruned, exact, on CPUs and tensor cores."""
