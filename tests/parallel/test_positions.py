"""Positions and document starts of a sharded row are those of the whole row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import recurrence
from seqjax.parallel import positions
from tests.conformance import cases

P = jax.sharding.PartitionSpec
BATCH = 24


@pytest.mark.parametrize("devices,length", [(2, 34), (8, 104)])
def test_documents_are_counted_across_devices(devices, length):
    ids = cases.mixed_segments(BATCH, length)
    mesh = jax.make_mesh(
        (devices,),
        ("seq",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:devices],
    )

    def local(ids):
        where = positions.document_positions(ids, ids.shape, "seq")
        plain = positions.document_positions(None, ids.shape, "seq")
        starts = positions.document_starts(ids, "seq")
        shards = positions.gather(ids, "seq")
        count = positions.before(shards, "seq").count[:, None]
        return where, plain, starts, count, positions.behind(shards, ids, "seq")

    time = P(None, "seq")
    run = jax.shard_map(local, mesh=mesh, in_specs=time, out_specs=time)
    where, plain, starts, count, behind = jax.jit(run)(ids)
    real = recurrence.real_positions(jnp.asarray(ids))
    np.testing.assert_array_equal(where, real)
    np.testing.assert_array_equal(plain[3], np.arange(length))
    np.testing.assert_array_equal(starts, recurrence.segment_starts(ids))
    shards = (ids >= 0).reshape(BATCH, devices, -1).sum(-1)
    np.testing.assert_array_equal(count, np.cumsum(shards, 1) - shards)
    width = length // devices
    for row, t in zip(*np.nonzero(ids >= 0), strict=True):
        later = ids[row, (t // width + 1) * width :]
        assert behind[row, t] == np.sum(later == ids[row, t])
