"""Checksums: any flip shows, and the mesh does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.training import checksums
from tests.training import _states

P = jax.sharding.PartitionSpec


class TestChecksums:
    DTYPES = [
        jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint32,
        jnp.int8, jnp.uint8, jnp.bool_, jnp.complex64, jnp.float8_e4m3fn,
    ]  # fmt: skip

    @pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
    def test_every_single_bit_flip_changes_the_sum(self, dtype):
        rng = np.random.default_rng(0)
        x = rng.integers(0, 100, (5, 3)).astype(dtype)
        raw = x.tobytes()
        width = 1 if dtype == jnp.bool_ else 8  # other bits of a bool are none
        flips = [raw]
        for place in range(len(raw)):
            for bit in range(width):
                flipped = bytearray(raw)
                flipped[place] ^= 1 << bit
                flips.append(bytes(flipped))
        arrays = [np.frombuffer(b, x.dtype).reshape(x.shape) for b in flips]
        sums = [
            checksums.leaf_checksums({"x": jnp.asarray(a)})["x"] for a in arrays
        ]
        assert sums[0] not in sums[1:]

    @pytest.mark.parametrize("dtype", [jnp.float64, jnp.int64, jnp.complex128])
    def test_wide_dtypes(self, dtype):
        with jax.enable_x64(True):
            x = jnp.arange(6, dtype=dtype).reshape(2, 3)
            sums = {
                checksums.leaf_checksums({"x": v})["x"]
                for v in (x, x.at[1, 2].add(1), x.at[0, 0].add(2**20))
            }
        assert len(sums) == 3

    def test_same_sum_on_every_mesh(self):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(16, 24, 3)))
        want = checksums.leaf_checksums({"x": x})
        for mesh, spec in [
            (_states.make_mesh(8), P("data")),
            (_states.make_mesh(4, 2), P("fsdp", "data")),
            (_states.make_mesh(2, 4), P(None, ("data", "fsdp"))),
            (_states.make_mesh(2), P(None, "data")),
            (_states.make_mesh(8), P()),
        ]:
            y = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
            assert checksums.leaf_checksums({"x": y}) == want

    def test_damage_that_plain_sums_miss(self):
        x = np.random.default_rng(2).normal(size=4096).astype(np.float32)
        negated = x.copy()
        negated[[10, 900]] *= -1
        swapped = x.copy()
        swapped[[1, 5]] = swapped[[5, 1]]
        page = x.copy()
        page[1024:2048] = 0
        arrays = (x, negated, swapped, page, np.roll(x, 1), x[::-1])
        sums = [
            checksums.leaf_checksums({"x": jnp.asarray(a)})["x"] for a in arrays
        ]
        assert len(set(sums)) == len(arrays)

    def test_leaves_on_different_devices_and_scalars(self):
        on_mesh = jax.device_put(
            jnp.arange(8.0),
            jax.sharding.NamedSharding(_states.make_mesh(8), P("data")),
        )
        alone = jax.device_put(jnp.arange(8.0), jax.devices()[3])
        sums = checksums.leaf_checksums(
            {"a": on_mesh, "b": alone, "c": jnp.float32(0), "d": jnp.zeros(0)}
        )
        assert sums["a"] == sums["b"] != sums["c"]
        assert sums["d"] == 0

    def test_one_trace_for_one_tree(self):
        tree = {"a": jnp.ones((3, 5)), "b": jnp.int32(1)}
        checksums.leaf_checksums(tree)
        size = checksums._checksum_tree._cache_size()
        checksums.leaf_checksums(jax.tree.map(lambda x: x + 1, tree))
        assert checksums._checksum_tree._cache_size() == size
