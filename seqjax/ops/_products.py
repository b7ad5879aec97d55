"""Products of matrices on the last two axes, for rules that solve or divide.

They are exact unless a plan is given, whose precision, that of products of the
operator's inputs, then will do.
"""

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST


def mm(x: jax.Array, y: jax.Array, plan=None) -> jax.Array:
    """x y."""
    return jnp.matmul(x, y, precision=_precision(plan))


def tmm(x: jax.Array, y: jax.Array, plan=None) -> jax.Array:
    """x^T y."""
    return jnp.einsum("...ci,...cj->...ij", x, y, precision=_precision(plan))


def mmt(x: jax.Array, y: jax.Array, plan=None) -> jax.Array:
    """x y^T."""
    return jnp.einsum("...iv,...jv->...ij", x, y, precision=_precision(plan))


def _precision(plan):
    return EXACT if plan is None else plan.precision
