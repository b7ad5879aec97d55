"""Efficient sequence models in JAX and Flax, as one affine recurrence."""

__version__ = "0.1.0"
