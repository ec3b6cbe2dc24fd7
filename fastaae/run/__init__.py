"""A training run on its host: the loop, its directory, signals, ranks. No arithmetic."""
