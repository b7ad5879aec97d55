"""Runs a step's sums over the mesh: every device its rows and its tokens.

The loss is a sum over tokens, so each device computes that of its own tokens
[B/(data fsdp), T/seq], and `psum` adds them up.  The whole of it, forward and
backward, is one `jax.shard_map` that is manual over all mesh axes, for three
reasons, measured on JAX 0.10.2, 0.11.2 and 0.12.0:

- Manual over "seq" alone, the compiler gathers the batch over data and fsdp in
  front of every collective along seq, and again behind it: on a mesh of
  2 x 2 x 2 each moves 4 times the bytes.
- A kernel is one opaque call, which the compiler cannot split over a batch.
- Embeddings, norms and MLPs cannot be gathered along T behind one's back: what
  is moved is what the program says.

The parameters are cast to vary over all devices first, so that every device has
the gradient of its own tokens and the devices meet in one sum at the end; the
shards of fsdp are gathered where they are used and their gradients scattered
there (`seqjax.models.across`).  Values whose sums are taken must not depend on
the number of devices otherwise: no mean, no norm.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from seqjax import models
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from seqjax.parallel import shards
from seqjax.recurrence import varying

P = jax.sharding.PartitionSpec


class Layout(NamedTuple):
    """Where a step runs.

    Attributes:
      mesh: of more than one device.
      across: how the model's variables lie on it.
    """

    mesh: jax.sharding.Mesh
    across: models.Across


def layout(
    mesh: jax.sharding.Mesh, config: mesh_lib.MeshConfig, variables: Any
) -> Layout | None:
    """The layout of a model's variables; None where there is one device.

    Args:
      mesh: of the run.
      config: names the exchanges along its axis seq.
      variables: shapes with their shardings on the mesh.
    """
    if mesh.size == 1:
        return None
    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, variables)
    if mesh.shape[mesh_lib.SEQUENCE_AXIS] == 1:
        return Layout(mesh, models.Across(specs))
    named = (config.exchange, config.attention_exchange)
    chosen = (None if name == "auto" else name for name in named)
    return Layout(mesh, models.Across(specs, mesh_lib.SEQUENCE_AXIS, *chosen))


def whole(layout: Layout | None) -> Callable[[Any], Any]:
    """What a device must gather of the variables before it calls the model."""
    return (lambda x: x) if layout is None else layout.across.outer


def sums(
    function: Callable[..., Any], layout: Layout | None
) -> Callable[..., Any]:
    """`function(variables, batch, *rest)` of the whole batch.

    Args:
      function: returns sums over the tokens of a batch.
      layout: None for one device.

    Returns:
      A function alike; `rest` is equal on all devices.
    """
    if layout is None:
        return function
    axes = layout.mesh.axis_names

    def device(variables: Any, batch: Any, *rest: Any) -> Any:
        variables = varying.match_varying(variables, axes)
        return jax.lax.psum(function(variables, batch, *rest), axes)

    return _shard_map(device, layout, P())


def sums_and_gradients(
    function: Callable[..., Any], layout: Layout | None
) -> Callable[..., Any]:
    """As `sums`, for a function that returns (sum, gradients)."""
    if layout is None:
        return function
    axes, specs = layout.mesh.axis_names, layout.across.specs

    def device(variables: Any, batch: Any, *rest: Any) -> Any:
        variables = varying.match_varying(variables, axes)
        total, gradients = function(variables, batch, *rest)
        total = jax.lax.psum(total, axes)
        return total, shards.total(gradients, specs, axes)

    return _shard_map(device, layout, (P(), specs))


def _shard_map(
    device: Callable[..., Any], layout: Layout, out_specs: Any
) -> Callable[..., Any]:
    batch = sharding.batch_sharding(layout.mesh).spec

    def call(variables: Any, data: Any, *rest: Any) -> Any:
        return jax.shard_map(
            device,
            mesh=layout.mesh,
            in_specs=(layout.across.specs, batch) + (P(),) * len(rest),
            out_specs=out_specs,
        )(variables, data, *rest)

    return call
