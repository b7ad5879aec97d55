"""The safetensors file format: a JSON header, then the numbers.

    8 bytes     length N of the header, little endian
    N bytes     {"name": {"dtype", "shape", "data_offsets"}, ...}
    the rest    the tensors, row major, at those offsets

A checkpoint is one file, or several with an index that says which tensor lies
in which.  Headers are read at once; a tensor is read when it is asked for.
"""

from collections.abc import Iterable, Mapping
import json
import math
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# A header beyond this is no header but a damaged file.
_MOST_HEADER = 100 * 2**20
DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


def entries(folder: pathlib.Path) -> dict[str, Entry]:
    """All tensors of a checkpoint, by name.

    Args:
      folder: with model.safetensors, or its index and the files it names.

    Raises:
      ValueError: a file is missing, damaged or against the index.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise ValueError(
                f"{folder} must hold {SINGLE}, or {INDEX} and the files it "
                f"names; it holds {sorted(p.name for p in folder.iterdir())}"
            )
        return _header(folder / SINGLE)
    places = _places(index)
    files = sorted(set(places.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{index} names files that are not there: {missing}")
    found, faults = {}, []
    for name in files:
        try:
            found |= _header(folder / name)
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("\n".join(faults))
    wrong = sorted(
        name
        for name in places.keys() | found.keys()
        if name not in found or found[name].file.name != places.get(name)
    )
    if wrong:
        raise ValueError(
            f"{index} and the files disagree on where these tensors lie: "
            f"{wrong}"
        )
    return found


def size(entry: Entry) -> int:
    """Bytes of a tensor."""
    return math.prod(entry.shape) * entry.dtype.itemsize


def read(entry: Entry, buffer: np.ndarray | None = None) -> np.ndarray:
    """One tensor.

    Args:
      entry: where it lies.
      buffer: uint8 [at least its bytes], to read it into; None for an array of
        its own.
    """
    count = size(entry)
    if buffer is None:
        buffer = np.empty(count, np.uint8)
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        if file.readinto(buffer.data[:count]) != count:
            raise ValueError(f"{entry.file} is shorter than its header says")
    return buffer[:count].view(entry.dtype).reshape(entry.shape)


def aligned(size: int) -> np.ndarray:
    """uint8 [size] at an address that devices can take it from as it is."""
    space = np.empty(size + 64, np.uint8)
    start = -space.ctypes.data % 64
    return space[start : start + size]


def _header(path: pathlib.Path) -> dict[str, Entry]:
    whole = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if whole < 8 or length > min(whole - 8, _MOST_HEADER):
            raise ValueError(
                f"{path} is no safetensors file, or cut off: {whole} bytes"
            )
        header = _object(path, file.read(length))
    header.pop("__metadata__", None)
    start = 8 + length
    found, faults, spans = {}, [], []
    for name, said in header.items():
        entry = _entry(path, said, start)
        if entry is None:
            faults.append(f"{name} is {said}")
            continue
        found[name] = entry
        if math.prod(entry.shape):
            spans.append((entry.start, entry.start + size(entry), name))
    # One after the other, from the first byte to the last.
    end = start
    for first, last, name in sorted(spans):
        if first != end:
            faults.append(f"{name} begins at byte {first}, not at {end}")
        end = last
    if end != whole and not faults:
        faults.append(f"the tensors end at byte {end}, the file at {whole}")
    if faults:
        raise ValueError(
            f"{path} cannot be read; dtypes are {list(DTYPES)}:\n  "
            + "\n  ".join(faults)
        )
    return found


def _entry(path: pathlib.Path, said: Any, start: int) -> Entry | None:
    """What a header says of a tensor; None where it makes no sense."""
    if not isinstance(said, dict) or not {"shape", "data_offsets"} <= {*said}:
        return None
    shape, offsets = said["shape"], said["data_offsets"]
    dtype = DTYPES.get(str(said.get("dtype")))
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(
            type(number) is int and number >= 0 for number in numbers
        ):
            return None
    if dtype is None or len(offsets) != 2:
        return None
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        return None
    return Entry(path, dtype, tuple(shape), start + offsets[0])


def _places(index: pathlib.Path) -> dict[str, str]:
    """Which file each tensor lies in."""
    places = _object(index, index.read_bytes()).get("weight_map")
    if not isinstance(places, dict) or not all(
        isinstance(name, str) and pathlib.PurePath(name).name == name
        for name in places.values()
    ):
        raise ValueError(
            f"{index} must hold weight_map, from names of tensors to names of "
            "files in its folder"
        )
    return places


def _object(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    """A JSON object that says no name twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ValueError(f"{twice} are there twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=once)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: no object")
    return value


class Planned(NamedTuple):
    """A tensor to be written."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan(
    tensors: Iterable[Planned], most: int
) -> list[tuple[str, list[Planned]]]:
    """Distributes tensors over files of at most so many bytes.

    Args:
      tensors: in the order in which they are to be written.
      most: bytes of a file; a larger tensor has a file of its own.

    Returns:
      For each file its name and its tensors.
    """
    files, size = [[]], 0
    for tensor in tensors:
        if files[-1] and size + tensor.bytes > most:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.bytes
    if len(files) == 1:
        return [(SINGLE, files[0])]
    return [
        (f"model-{i:05}-of-{len(files):05}.safetensors", file)
        for i, file in enumerate(files, 1)
    ]


def index_of(files: list[tuple[str, list[Planned]]]) -> str:
    """The index of several files, as JSON."""
    total = sum(tensor.bytes for _, file in files for tensor in file)
    places = {tensor.name: name for name, file in files for tensor in file}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def write(
    path: pathlib.Path,
    tensors: list[Planned],
    arrays: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file, tensor by tensor.

    Args:
      path: of the file.
      tensors: what it will hold.
      arrays: their values in that order; each is asked for when the one
        before is written.
      metadata: strings for the header.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.bytes],
        }
        start += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor, array in zip(tensors, arrays, strict=True):
            if (array.dtype, array.shape) != (tensor.dtype, tensor.shape):
                raise ValueError(
                    f"{tensor.name} was planned as {tensor.dtype} "
                    f"{tensor.shape}, got {array.dtype} {array.shape}"
                )
            flat = np.ascontiguousarray(array).reshape(-1)
            file.write(flat.view(np.uint8).data)
