"""The operations of a training step on a GPU, in Triton: see kernels/reference.py for what each does."""
