"""Checkpoints: what comes back is what was saved, or it is named damaged."""

import contextlib
import logging as python_logging
import pathlib
import random
import resource
import shutil
import time

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from seqjax.training import checkpoints
from seqjax.training import checksums

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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with steps 10 and 20 of different states."""
    directory = tmp_path_factory.mktemp("saved")
    with open_store(directory) as store:
        for step in (10, 20):
            store.save(
                step, make_state(step), {"at": [step, 0.1]}, {"note": str(step)}
            )
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))


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
            (make_mesh(8), P("data")),
            (make_mesh(4, 2), P("fsdp", "data")),
            (make_mesh(2, 4), P(None, ("data", "fsdp"))),
            (make_mesh(2), P(None, "data")),
            (make_mesh(8), P()),
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
            jnp.arange(8.0), jax.sharding.NamedSharding(make_mesh(8), P("data"))
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


class TestRoundTrip:
    def test_newest_step_bit_for_bit(self, saved):
        with open_store(saved, read_only=True) as store:
            assert store.steps() == [10, 20]
            restored = store.restore(abstract(make_state()))
            assert store.read_meta(10) == {"note": "10"}
        assert restored.step == 20
        assert bits(restored.state) == bits(make_state(20))
        assert restored.data_state == {"at": [20, 0.1]}
        assert restored.meta == {"note": "20"}

    def test_a_step_by_name(self, saved):
        with open_store(saved, read_only=True) as store:
            restored = store.restore(abstract(make_state()), step=10)
            assert bits(restored.state) == bits(make_state(10))
            with pytest.raises(ValueError, match=r"no checkpoint of step 15.*"):
                store.restore(abstract(make_state()), step=15)

    def test_without_shardings(self, saved):
        target = jax.eval_shape(make_state)
        with open_store(saved, read_only=True) as store:
            restored = store.restore(target)
        assert bits(restored.state) == bits(make_state(20))

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
        state = make_state(20)
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
        state = make_state(1, make_mesh(8), P("data"))
        target = abstract(make_state(2, make_mesh(*shape), spec))
        with open_store(tmp_path) as store:
            store.save(1, state, {}, {})
            restored = store.restore(target).state
        assert bits(restored) == bits(state)
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
        with open_store(tmp_path) as store:
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
        with open_store(tmp_path / "none", read_only=True) as store:
            assert store.steps() == []
            assert store.restore(abstract(make_state())) is None
        assert not (tmp_path / "none").exists()
        with open_store(tmp_path / "new") as store:
            assert store.restore(abstract(make_state())) is None


class TestKeeping:
    def test_keep_and_keep_every(self, tmp_path):
        with open_store(tmp_path, keep=2, keep_every=4) as store:
            for step in range(1, 11):
                store.save(step, {"x": jnp.float32(step)}, {}, {})
            store.wait()
            assert store.steps() == [4, 8, 9, 10]

    def test_same_step_twice(self, tmp_path):
        with open_store(tmp_path) as store:
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
        with open_store(copy, read_only=True) as store:
            assert store.steps() == [10, 20]
            assert leftover.exists()
        with open_store(copy) as store:
            assert store.steps() == [10, 20]
        assert not leftover.parent.exists()

    def test_read_only_refuses_to_save(self, copy):
        with open_store(copy, read_only=True) as store:
            with pytest.raises(checkpoints.CheckpointError, match="read_only"):
                store.save(30, make_state(), {}, {})

    @pytest.mark.parametrize("name", ["keep", "keep_every"])
    def test_bad_policy(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            checkpoints.CheckpointStore(tmp_path, **{"keep": 1} | {name: 0})


class TestBadInput:
    def test_leaf_that_is_no_array(self, tmp_path):
        with open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="'a/b' is int"):
                store.save(1, {"a": {"b": 3}}, {}, {})

    @pytest.mark.parametrize("name", ["data_state", "meta"])
    def test_no_json(self, tmp_path, name):
        given = {"data_state": {}, "meta": {}} | {name: {"x": {1, 2}}}
        with open_store(tmp_path) as store:
            with pytest.raises(ValueError, match=f"{name} must hold only"):
                store.save(1, {"x": jnp.ones(2)}, **given)

    def test_paths_that_collide(self, tmp_path):
        state = {"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
        with open_store(tmp_path) as store:
            with pytest.raises(ValueError, match="'a/b'"):
                store.save(1, state, {}, {})


class TestMismatch:
    def edit(self, name):
        state = jax.eval_shape(make_state)
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
        with open_store(copy) as store:
            with pytest.raises(checkpoints.CheckpointMismatch) as caught:
                store.restore(state)
            assert text in str(caught.value)
            assert "another workdir" in str(caught.value)
            assert store.steps() == [10, 20]

    def test_long_lists_are_cut(self, copy):
        state = {str(i): jax.ShapeDtypeStruct((), "float32") for i in range(9)}
        with open_store(copy) as store:
            with pytest.raises(ValueError, match="and 12 more"):
                store.restore(state)


def flip(path, offset, bit):
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 1 << bit
    path.write_bytes(bytes(raw))


def files(step):
    found = sorted(p for p in step.rglob("*") if p.is_file())
    return [p for p in found if p.stat().st_size]


def restore_quietly(directory, step):
    """The verified state of a step, or None if it is found damaged."""
    target = abstract(make_state())
    with open_store(directory, read_only=True) as store:
        try:
            return store.restore(target, step=step)
        except checkpoints.CheckpointDamaged as error:
            assert f"step {step}: " in str(error)
            return None


class TestDamage:
    def check(self, restored, must_find):
        """Damage is found, or did not reach anything that came back."""
        if restored is None:
            return
        assert not must_find
        assert bits(restored.state) == bits(make_state(20))
        assert restored.data_state == {"at": [20, 0.1]}
        assert restored.meta == {"note": "20"}

    def test_bit_flips_in_every_file(self, copy):
        rng = random.Random(0)
        for path in files(copy / "20"):
            size, found = path.stat().st_size, 0
            for _ in range(12):
                offset, bit = rng.randrange(size), rng.randrange(8)
                flip(path, offset, bit)
                restored = restore_quietly(copy, 20)
                found += restored is None
                self.check(restored, path.name == "metadata")
                flip(path, offset, bit)
            # Bits of a compressor's header may mean nothing; few are such.
            assert found >= 9 or size < 4096
        self.check(restore_quietly(copy, 20), False)

    def test_files_truncated_zeroed_or_gone(self, copy):
        for path in files(copy / "20"):
            raw = path.read_bytes()
            half = len(raw) // 2
            for damaged in (raw[:half], raw[:-1], b"", bytes(len(raw)), None):
                path.unlink()
                if damaged is not None:
                    path.write_bytes(damaged)
                must = path.name == "metadata" or (
                    len(raw) > 4096 and damaged != raw[:-1]
                )
                self.check(restore_quietly(copy, 20), must)
            path.write_bytes(raw)

    @pytest.mark.parametrize("part", ["state", "data", "meta", ""])
    def test_whole_parts_gone(self, copy, part, caplog):
        shutil.rmtree(copy / "20" / part)
        if not part:
            (copy / "20").mkdir()
        with open_store(copy) as store:
            restored = store.restore(abstract(make_state()))
            assert restored.step == 10
            assert store.steps() == [10]
        assert (copy / "damaged-20").is_dir()
        assert f"step 20 is damaged: {part}" in caplog.text

    def test_named_set_aside_and_training_goes_on(self, copy, caplog):
        path = max(files(copy / "20"), key=lambda p: p.stat().st_size)
        flip(path, path.stat().st_size // 2, 3)
        raw = path.read_bytes()
        with open_store(copy, keep=2) as store:
            restored = store.restore(abstract(make_state()))
            assert restored.step == 10
            assert bits(restored.state) == bits(make_state(10))
            store.save(20, make_state(7), {}, {})
            store.save(30, make_state(8), {}, {})
            store.wait()
            assert store.steps() == [20, 30]
            assert store.restore(abstract(make_state()), step=20).meta == {}
        assert "step 20 is damaged: state: bits changed in params/" in (
            caplog.text
        )
        kept = copy / "damaged-20" / path.relative_to(copy / "20")
        assert kept.read_bytes() == raw

    def test_a_second_damaged_copy_keeps_the_first(self, copy):
        for _ in range(2):
            (copy / "20" / "meta" / "metadata").write_text("{}")
            with open_store(copy) as store:
                assert store.restore(abstract(make_state())).step == 10
                store.save(20, make_state(20), {}, {})
        assert (copy / "damaged-20").is_dir()
        assert (copy / "damaged-20-2").is_dir()

    def test_read_only_changes_nothing(self, copy):
        (copy / "20" / "meta" / "metadata").write_text("{}")
        with open_store(copy, read_only=True) as store:
            assert store.restore(abstract(make_state())).step == 10
            with pytest.raises(checkpoints.CheckpointDamaged, match="step 20"):
                store.read_meta(20)
        assert sorted(p.name for p in copy.iterdir()) == ["10", "20"]

    def test_no_intact_step(self, copy):
        for step in ("10", "20"):
            (copy / step / "data" / "metadata").unlink()
        with open_store(copy) as store:
            with pytest.raises(checkpoints.CheckpointDamaged) as caught:
                store.restore(abstract(make_state()))
            assert store.steps() == [10, 20]
        text = str(caught.value)
        assert "step 10: data: " in text and "step 20: data: " in text
        assert "Nothing was changed" in text

    def test_a_step_under_another_name(self, copy):
        (copy / "10").rename(copy / "40")
        with open_store(copy) as store:
            assert store.restore(abstract(make_state())).step == 20
        assert (copy / "damaged-40").is_dir()


@contextlib.contextmanager
def file_size_limit(size):
    """Stands for a full disk: no file may grow past size bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestFailingSaves:
    def big(self, seed):
        x = np.random.default_rng(seed).normal(size=(1024, 1024))
        return {"x": jnp.asarray(x, jnp.float32)}

    @pytest.mark.parametrize("how", ["check", "save", "wait", "close"])
    def test_full_disk(self, tmp_path, how, capfd):
        store = checkpoints.CheckpointStore(tmp_path, keep=2)
        store.save(1, self.big(1), {}, {})
        store.wait()
        with file_size_limit(2**20):
            with pytest.raises(checkpoints.CheckpointError) as caught:
                store.save(2, self.big(2), {}, {})
                if how == "check":
                    for _ in range(200):
                        store.check()
                        time.sleep(0.05)
                elif how == "save":
                    store.save(3, self.big(3), {}, {})
                elif how == "wait":
                    store.wait()
                else:
                    store.close()
            text = str(caught.value)
            assert "saving checkpoint step 2" in text
            assert "Steps on disk: [1]" in text and "free space" in text
            store.close()
            store.close()
        assert "Traceback" not in capfd.readouterr().err
        target = {"x": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
        with open_store(tmp_path) as again:
            restored = again.restore(target)
            assert restored.step == 1
            assert bits(restored.state) == bits(self.big(1))
            again.save(2, self.big(2), {}, {})
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]

    def test_an_error_in_the_loop_is_not_hidden(self, tmp_path):
        with pytest.raises(KeyError):
            with open_store(tmp_path) as store, file_size_limit(2**20):
                store.save(1, self.big(1), {}, {})
                raise KeyError

    def test_no_directory_to_write_to(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(checkpoints.CheckpointError, match="cannot open"):
            checkpoints.CheckpointStore(tmp_path / "file" / "x", keep=1)


def test_no_walls_of_log_lines(tmp_path):
    logging.set_verbosity(logging.INFO)
    lines = []

    class Collect(python_logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    handler = Collect()
    logging.get_absl_logger().addHandler(handler)
    try:
        with open_store(tmp_path) as store:
            store.save(1, make_state(), {}, {})
            store.wait()
            store.restore(abstract(make_state()))
    finally:
        logging.get_absl_logger().removeHandler(handler)
        logging.set_verbosity(logging.WARNING)
    assert len(lines) <= 2, lines
