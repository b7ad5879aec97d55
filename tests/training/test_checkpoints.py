"""Checkpoints: what comes back is what was saved, on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from seqjax.training import checkpoints
from tests.training import _states

P = jax.sharding.PartitionSpec


class TestRoundTrip:
    def test_newest_step_bit_for_bit(self, saved):
        with _states.open_store(saved, read_only=True) as store:
            assert store.steps() == [10, 20]
            restored = store.restore(_states.abstract(_states.make_state()))
            assert store.read_meta(10) == {"note": "10"}
        assert restored.step == 20
        assert _states.bits(restored.state) == _states.bits(
            _states.make_state(20)
        )
        assert restored.data_state == {"at": [20, 0.1]}
        assert restored.meta == {"note": "20"}

    def test_a_step_by_name(self, saved):
        with _states.open_store(saved, read_only=True) as store:
            restored = store.restore(
                _states.abstract(_states.make_state()), step=10
            )
            assert _states.bits(restored.state) == _states.bits(
                _states.make_state(10)
            )
            with pytest.raises(ValueError, match=r"no checkpoint of step 15.*"):
                store.restore(_states.abstract(_states.make_state()), step=15)

    def test_without_shardings(self, saved):
        target = jax.eval_shape(_states.make_state)
        with _states.open_store(saved, read_only=True) as store:
            restored = store.restore(target)
        assert _states.bits(restored.state) == _states.bits(
            _states.make_state(20)
        )

    def test_orbax_reads_the_same_arrays(self, saved):
        with ocp.StandardCheckpointer() as reader:
            raw = reader.restore(
                saved / "20" / "state",
                {"params/w": jax.ShapeDtypeStruct((64, 128), jnp.float32)}
                | {
                    "params/h": jax.ShapeDtypeStruct((8, 128), jnp.bfloat16),
                    "optimizer/0/count": jax.ShapeDtypeStruct((), jnp.int32),
                    "optimizer/1/0": jax.ShapeDtypeStruct((33,), jnp.uint32),
                    "mask": jax.ShapeDtypeStruct((17,), jnp.bool_),
                    "key": jax.ShapeDtypeStruct((2,), jnp.uint32),
                    "keys": jax.ShapeDtypeStruct((3, 4), jnp.uint32),
                },
            )
        state = _states.make_state(20)
        np.testing.assert_array_equal(raw["params/w"], state["params"]["w"])
        np.testing.assert_array_equal(raw["mask"], state["mask"])

    @pytest.mark.parametrize(
        "shape, spec",
        [
            ((4, 2), P("fsdp", "data")),
            ((2,), P(None, "data")),
            ((1,), P("data")),
            ((8,), P()),
        ],
    )
    def test_on_another_mesh(self, tmp_path, shape, spec):
        state = _states.make_state(1, _states.make_mesh(8), P("data"))
        target = _states.abstract(
            _states.make_state(2, _states.make_mesh(*shape), spec)
        )
        with _states.open_store(tmp_path) as store:
            store.save(1, state, {}, {})
            restored = store.restore(target).state
        assert _states.bits(restored) == _states.bits(state)
        same = jax.tree.map(
            lambda x, t: x.sharding.is_equivalent_to(t.sharding, x.ndim),
            restored,
            target,
        )
        assert jax.tree.all(same)

    def test_donated_right_after_save(self, tmp_path):
        @jax.jit
        def fill(seed):
            return jax.random.normal(jax.random.key(seed), (512, 512))

        step = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
        x = fill(0)
        want = {}
        with _states.open_store(tmp_path) as store:
            for k in range(4):
                want[k] = np.array(x)
                store.save(k, {"x": x}, {}, {})
                x = step(x)
                x = step(x)
            target = {"x": jax.ShapeDtypeStruct((512, 512), jnp.float32)}
            store.wait()
            assert store.steps() == [1, 2, 3]
            for k in store.steps():
                got = store.restore(target, step=k).state["x"]
                np.testing.assert_array_equal(got, want[k])

    def test_nothing_there(self, tmp_path):
        with _states.open_store(tmp_path / "none", read_only=True) as store:
            assert store.steps() == []
            assert store.restore(_states.abstract(_states.make_state())) is None
        assert not (tmp_path / "none").exists()
        with _states.open_store(tmp_path / "new") as store:
            assert store.restore(_states.abstract(_states.make_state())) is None


class TestKeeping:
    def test_keep_and_keep_every(self, tmp_path):
        with _states.open_store(tmp_path, keep=2, keep_every=4) as store:
            for step in range(1, 11):
                store.save(step, {"x": jnp.float32(step)}, {}, {})
            store.wait()
            assert store.steps() == [4, 8, 9, 10]

    def test_same_step_twice(self, tmp_path):
        with _states.open_store(tmp_path) as store:
            store.save(3, {"x": jnp.ones(3)}, {"i": 1}, {"host": "a"})
            store.save(3, {"x": jnp.ones(3)}, {"i": 1}, {"host": "b"})
            assert store.read_meta(3) == {"host": "a"}
            with pytest.raises(
                checkpoints.CheckpointError, match="step 3 already exists"
            ):
                store.save(3, {"x": jnp.zeros(3)}, {"i": 1}, {})

    def test_leftovers_of_a_killed_save_go(self, copy):
        leftover = copy / "30.orbax-checkpoint-tmp" / "state"
        leftover.mkdir(parents=True)
        (leftover / "part").write_text("x")
        with _states.open_store(copy, read_only=True) as store:
            assert store.steps() == [10, 20]
            assert leftover.exists()
        with _states.open_store(copy) as store:
            assert store.steps() == [10, 20]
        assert not leftover.parent.exists()

    def test_read_only_refuses_to_save(self, copy):
        with _states.open_store(copy, read_only=True) as store:
            with pytest.raises(checkpoints.CheckpointError, match="read_only"):
                store.save(30, _states.make_state(), {}, {})

    @pytest.mark.parametrize("name", ["keep", "keep_every"])
    def test_bad_policy(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            checkpoints.CheckpointStore(tmp_path, **{"keep": 1} | {name: 0})


class TestBadInput:
    def test_leaf_that_is_no_array(self, tmp_path):
        with _states.open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="'a/b' is int"):
                store.save(1, {"a": {"b": 3}}, {}, {})

    def test_weakly_typed_leaf(self, tmp_path):
        with _states.open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="'x' is weakly typed"):
                store.save(1, {"x": jnp.asarray(3.0)}, {}, {})

    def test_negative_step(self, tmp_path):
        with _states.open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="step must be at least 0"):
                store.save(-1, {"x": jnp.ones(2)}, {}, {})

    @pytest.mark.parametrize("name", ["data_state", "meta"])
    def test_no_json(self, tmp_path, name):
        given = {"data_state": {}, "meta": {}} | {name: {"x": {1, 2}}}
        with _states.open_store(tmp_path) as store:
            with pytest.raises(ValueError, match=f"{name} must hold only"):
                store.save(1, {"x": jnp.ones(2)}, **given)

    def test_paths_that_collide(self, tmp_path):
        state = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
        with _states.open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="'a/b'"):
                store.save(1, state, {}, {})


class TestMismatch:
    def edit(self, name):
        state = jax.eval_shape(_states.make_state)
        w = state["params"]["w"]
        if name == "shape":
            state["params"]["w"] = jax.ShapeDtypeStruct((64, 64), w.dtype)
            return state, "params/w: checkpoint float32[64,128], model float32"
        if name == "dtype":
            state["params"]["w"] = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
            return state, "checkpoint float32[64,128], model bfloat16[64,128]"
        if name == "missing":
            del state["optimizer"][1][0]
            text = "optimizer/1/0: checkpoint uint32[33], model has none"
            return state, text
        if name == "renamed":
            state["params"]["v"] = state["params"].pop("w")
            return state, "params/v: checkpoint has none, model float32[64,128]"
        state["key"] = jax.eval_shape(lambda: jax.random.key(0, impl="rbg"))
        return state, "key: checkpoint key<fry>[], model key<rbg>[]"

    @pytest.mark.parametrize(
        "name", ["shape", "dtype", "missing", "renamed", "key"]
    )
    def test_refused_with_both_sides(self, copy, name):
        state, text = self.edit(name)
        with _states.open_store(copy) as store:
            with pytest.raises(checkpoints.CheckpointMismatch) as caught:
                store.restore(state)
            assert text in str(caught.value)
            assert "another workdir" in str(caught.value)
            assert store.steps() == [10, 20]

    def test_long_lists_are_cut(self, copy):
        state = {str(i): jax.ShapeDtypeStruct((), "float32") for i in range(9)}
        with _states.open_store(copy) as store:
            with pytest.raises(ValueError, match="and 12 more"):
                store.restore(state)
