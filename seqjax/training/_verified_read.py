"""Reading a checkpoint step and proving that it is what was saved."""

from collections.abc import Callable, Mapping
import json
import math
import pathlib
from typing import Any, TypeVar

import jax
import numpy as np
import tensorstore

from seqjax.training import _manifest
from seqjax.training import _processes
from seqjax.training import checksums

T = TypeVar("T")

_SHOWN = 5


def read_manifest(directory: pathlib.Path, step: int) -> dict:
    """The manifest of a step, its seal checked.

    Raises:
      Damage: if it is missing, no JSON or does not match its seal.
    """
    manifest = _read_json(directory / str(step), "meta")
    _manifest.check_seal(manifest, step)
    return manifest


def read_step(
    directory: pathlib.Path, step: int, abstract: Mapping[str, Any]
) -> tuple[dict[str, jax.Array], dict, dict]:
    """State by path, this process's data position, and the manifest.

    Raises:
      CheckpointMismatch: if the leaves recorded are not those of abstract.
      Damage: naming the part, file or leaves that cannot be trusted.
    """
    path = directory / str(step)
    manifest, data = _agreed(lambda: _read_texts(directory, step))
    recorded = manifest["state"]
    _manifest.compare(recorded, abstract, f"checkpoint step {step} in {path}")
    raw = _agreed(lambda: _read_checked(path / "state", abstract, recorded))
    state = {
        name: jax.random.wrap_key_data(raw[name], impl=recorded[name]["impl"])
        if _manifest.is_key(leaf)
        else raw[name]
        for name, leaf in abstract.items()
    }
    return state, _own_share(path, data), manifest


def _read_texts(directory: pathlib.Path, step: int) -> tuple[dict, list]:
    """The manifest and the data positions, both checked."""
    manifest = read_manifest(directory, step)
    data = _read_json(directory / str(step), "data").get("processes", [])
    if _manifest.digest(data) != manifest["data_sha256"]:
        raise _manifest.Damage("data: its contents do not match their checksum")
    return manifest, data


def _read_checked(
    path: pathlib.Path, abstract: Mapping[str, Any], recorded: Mapping
) -> dict[str, jax.Array]:
    """The arrays, their bits checked."""
    raw = _read_arrays(path, abstract)
    found = checksums.leaf_checksums(raw)
    wrong = [n for n in raw if found[n] != recorded[n]["checksum"]]
    if wrong:
        more = len(wrong) - _SHOWN
        raise _manifest.Damage(
            "state: bits changed in "
            + ", ".join(wrong[:_SHOWN])
            + (f" and {more} more leaves" if more > 0 else "")
        )
    return raw


def set_aside(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Renames a damaged step so that nothing of it is lost."""
    target, count = directory / f"damaged-{step}", 1
    while target.exists():
        count += 1
        target = directory / f"damaged-{step}-{count}"
    return (directory / str(step)).rename(target)


def _own_share(path: pathlib.Path, positions: list[dict]) -> dict:
    if len(positions) == jax.process_count():
        return positions[jax.process_index()]
    if all(position == positions[0] for position in positions):
        return positions[0]
    raise _manifest.CheckpointMismatch(
        f"{path} was written by {len(positions)} processes with a data "
        f"position each, this job has {jax.process_count()}; start it with "
        f"{len(positions)} processes"
    )


def _read_json(path: pathlib.Path, item: str) -> dict:
    file = path / item / "metadata"
    try:
        value = json.loads(file.read_text())
    except PermissionError as error:
        raise _manifest.CheckpointError(
            f"cannot read {file}: {error.strerror}; fix its permissions"
        ) from error
    except OSError as error:
        raise _manifest.Damage(f"{item}: {file}: {error.strerror}") from error
    except ValueError as error:
        raise _manifest.Damage(
            f"{item}: {file} is not JSON: {_manifest.brief(error)}"
        ) from error
    if not isinstance(value, dict):
        raise _manifest.Damage(f"{item}: {file} is no JSON object")
    return value


def _read_arrays(
    path: pathlib.Path, abstract: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Arrays (key data for PRNG keys) on the shardings asked for.

    TensorStore is read directly: Orbax reads inside an event loop that it
    closes on the first error, which floods stderr with tracebacks of the
    other reads, and it does not say which leaf was hit.
    """
    context = tensorstore.Context(
        {"cache_pool#ocdbt": {"total_bytes_limit": 100_000_000}}
    )
    targets, stores, arrays = {}, {}, {}
    for name, leaf in abstract.items():
        sharding = getattr(leaf, "sharding", None)
        if sharding is None:
            sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        if _manifest.is_key(leaf):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        targets[name] = leaf, sharding
        if math.prod(leaf.shape):
            stores[name] = tensorstore.open(
                _spec(path, name), read=True, open=True, context=context
            )
    for name, (leaf, sharding) in targets.items():
        if name in stores:
            arrays[name] = _read_leaf(path, name, stores[name], leaf, sharding)
        else:
            arrays[name] = jax.device_put(
                np.zeros(leaf.shape, leaf.dtype), sharding
            )
    return arrays


def _spec(path: pathlib.Path, name: str) -> dict:
    base = {"driver": "file", "path": f"{path}/"}
    return {
        "driver": "zarr",
        "kvstore": {
            "driver": "ocdbt",
            "base": base,
            "path": f"{name}/",
            "cache_pool": "cache_pool#ocdbt",
        },
        # Without this a lost chunk reads as zeros.
        "fill_missing_data_reads": False,
    }


def _read_leaf(path, name, opening, leaf, sharding) -> jax.Array:
    """Reads what this process holds of a leaf, one leaf at a time."""
    try:
        store = opening.result()
        found = store.dtype.numpy_dtype, store.shape
        if found != (leaf.dtype, leaf.shape):
            raise _manifest.Damage(
                f"state: {name} is stored as {found[0]}{list(found[1])}, "
                f"recorded as {leaf.dtype}{list(leaf.shape)}"
            )
        # Replicas share one read.
        indices = sharding.addressable_devices_indices_map(leaf.shape).values()
        reads = {str(index): store[index].read() for index in indices}
        parts = {key: np.asarray(read.result()) for key, read in reads.items()}
    except (ValueError, OSError, RuntimeError) as error:
        text = _manifest.brief(error)
        if "PERMISSION_DENIED" in text or "RESOURCE_EXHAUSTED" in text:
            raise _manifest.CheckpointError(
                f"cannot read {name} in {path}: {text}"
            ) from error
        raise _manifest.Damage(f"state: {name}: {text}") from error
    return jax.make_array_from_callback(
        leaf.shape, sharding, lambda index: parts[str(index)]
    )


def _agreed(read: Callable[[], T]) -> T:
    """The result of read; Damage in all processes if any of them finds some."""
    try:
        result = read()
    except _manifest.Damage:
        _processes.where_true(True)
        raise
    where = _processes.where_true(False)
    if where:
        raise _manifest.Damage(f"found damaged by processes {where}")
    return result
