"""What the sequence-parallel operators say to each other, read in the HLO."""

import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import pytest

from seqjax import ops

_COLLECTIVES = re.compile(
    r"= (\S+) (all-gather|all-reduce|reduce-scatter|collective-permute|"
    r"all-to-all)(?:-start)?\("
)
_BYTES = {"f32": 4, "s32": 4}


def collectives(compiled):
    """List of (kind, bytes of the result on a device)."""
    found = []
    for shape, kind in _COLLECTIVES.findall(compiled.as_text()):
        dtype, dims = re.match(r"(\w+)\[([\d,]*)\]", shape).groups()
        size = _BYTES[dtype]
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        found.append((kind, size))
    return found


def sharded_gla(mesh, length, *, grad):
    sharded = P(None, "seq")

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(sharded,) * 5,
        out_specs=sharded,
    )
    def run(q, k, v, log_decay, segment_ids):
        return ops.gated_linear_attention(
            q, k, v, log_decay, segment_ids=segment_ids, axis_name="seq"
        )[0]

    def loss(*args):
        return jnp.sum(run(*args) ** 2)

    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    gates = jax.ShapeDtypeStruct((1, length, 2), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    function = jax.grad(loss, argnums=(0, 1, 2, 3)) if grad else run
    return jax.jit(function).lower(x, x, x, gates, ids).compile()


@pytest.mark.parametrize("grad", [False, True])
def test_one_all_gather_a_direction_of_a_size_independent_of_length(grad):
    devices = 4
    mesh = jax.make_mesh(
        (devices,),
        ("seq",),
        devices=jax.devices()[:devices],
        axis_types=(jax.sharding.AxisType.Auto,),
    )
    short = collectives(sharded_gla(mesh, 4 * 32, grad=grad))
    long = collectives(sharded_gla(mesh, 4 * 256, grad=grad))
    assert short == long
    state = 2 * 8 * 8
    # State, log decay, zeros, and two ids as halves of 16 bits.
    forward = 4 * devices * (state + 2 + 2 + 4)
    backward = 4 * devices * state
    expected = [("all-gather", forward)]
    if grad:
        expected.append(("all-gather", backward))
    assert sorted(short) == sorted(expected)
