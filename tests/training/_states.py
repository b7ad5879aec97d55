"""States and stores that the checkpoint tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from seqjax.training import checkpoints

P = jax.sharding.PartitionSpec


def make_mesh(*shape):
    names = ("data", "fsdp")[: len(shape)]
    axis_types = (jax.sharding.AxisType.Auto,) * len(shape)
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=axis_types, devices=devices)


def make_state(seed=0, mesh=None, spec=None):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(64, 128)).astype(np.float32)
    w[0, :3] = [np.nan, -0.0, np.inf]
    state = {
        "params": {"w": jnp.asarray(w), "h": jnp.asarray(w[:8], jnp.bfloat16)},
        "optimizer": (
            {"count": jnp.int32(seed), "none": None},
            [jnp.asarray(rng.integers(0, 2**32, 33, np.uint32))],
        ),
        "mask": jnp.asarray(rng.integers(0, 2, 17).astype(bool)),
        "empty": jnp.zeros((0, 4)),
        "key": jax.random.key(seed),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
    }
    if mesh is not None:
        sharding = jax.sharding.NamedSharding(mesh, P())
        state = jax.device_put(state, sharding)
        wide = jax.sharding.NamedSharding(mesh, spec or P())
        state["params"] = jax.device_put(state["params"], wide)
    return state


def abstract(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        state,
    )


def bits(state):
    """Every leaf as bytes, so that NaNs and signed zeros count."""

    def raw(x):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return x.dtype, x.shape, np.asarray(x).tobytes()

    leaves, structure = jax.tree.flatten(state)
    return structure, [raw(x) for x in leaves]


def open_store(directory, **options):
    return checkpoints.CheckpointStore(directory, **{"keep": 3} | options)
