"""The mesh and the rules that lay a state out on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding

P = jax.sharding.PartitionSpec


def test_sizes():
    assert mesh_lib.MeshConfig().sizes(8) == (8, 1, 1)
    assert mesh_lib.MeshConfig(fsdp=4).sizes(8) == (2, 4, 1)
    assert mesh_lib.MeshConfig(data=2, fsdp=4).sizes(8) == (2, 4, 1)
    assert mesh_lib.MeshConfig(seq=4).sizes(8) == (2, 1, 4)
    for bad in (mesh_lib.MeshConfig(fsdp=3), mesh_lib.MeshConfig(data=3)):
        with pytest.raises(ValueError, match="8 are there; set mesh.data=-1"):
            bad.sizes(8)
    for many in (mesh_lib.MeshConfig(fsdp=16), mesh_lib.MeshConfig(seq=16)):
        with pytest.raises(ValueError, match="takes 16 devices, but 8"):
            many.sizes(8)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (mesh_lib.MeshConfig(data=0), "mesh.data must be -1 .* got 0"),
        (mesh_lib.MeshConfig(fsdp=0), "mesh.fsdp must be at least 1, got 0"),
        (mesh_lib.MeshConfig(seq=0), "mesh.seq must be at least 1, got 0"),
        (mesh_lib.MeshConfig(exchange="star"), "mesh.exchange must be one of"),
        (
            mesh_lib.MeshConfig(attention_exchange="prefix_scan"),
            "mesh.attention_exchange must be one of .* got 'prefix_scan'",
        ),
    ],
)
def test_impossible_sizes(config, text):
    with pytest.raises(ValueError, match=text):
        config.validate()


def test_rules():
    rules = sharding.ShardingRules(
        min_size=64, overrides=((r"table$", ("fsdp", None)),)
    )
    assert rules.spec("a/kernel", (8, 16), 4) == P(None, "fsdp")
    assert rules.spec("a/kernel", (16, 6), 4) == P("fsdp")
    assert rules.spec("a/kernel", (3, 30), 4) == P()
    assert rules.spec("a/kernel", (4, 4), 4) == P()
    assert rules.spec("a/kernel", (8, 16), 1) == P()
    assert rules.spec("a/table", (2, 4), 2) == P("fsdp", None)
    with pytest.raises(ValueError, match="a/table has shape"):
        rules.spec("a/table", (2, 4, 4), 2)


def test_a_tree_on_the_mesh():
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=4))
    assert sharding.batch_shards(mesh) == 8
    tree = {"big": jnp.ones((8, 64)), "small": jnp.ones(3)}
    where = sharding.tree_shardings(
        tree, mesh, sharding.ShardingRules(min_size=64)
    )
    placed = jax.device_put(tree, where)
    shapes = {s.data.shape for s in placed["big"].addressable_shards}
    assert shapes == {(8, 16)}
    assert placed["small"].sharding.is_fully_replicated
    batch = jax.device_put(np.ones((16, 3)), sharding.batch_sharding(mesh))
    assert {s.data.shape for s in batch.addressable_shards} == {(2, 3)}
