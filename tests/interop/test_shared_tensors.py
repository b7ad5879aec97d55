"""Files that hold a block again in each of the layers that share it."""

import jax
import numpy as np
import pytest

from seqjax import interop
from seqjax.interop import loading
from tests.interop import changed
from tests.interop import golden

# Its name, the layer that holds it and the next one that uses it.
BLOCKS = {
    "zamba": ("shared_transf", 2, 4),
    "zamba2": ("shared_transformer", 1, 3),
}


def repeated(tmp_path, family):
    """A copy of a checkpoint with all copies, and their names."""
    name, holder, again = BLOCKS[family]
    folder, added = changed.copy(tmp_path, family), []

    def repeat(arrays):
        for tensor in [t for t in arrays if f"layers.{holder}.{name}." in t]:
            added.append(tensor.replace(f".{holder}.", f".{again}.", 1))
            arrays[added[-1]] = arrays[tensor]

    changed.rewrite(folder, repeat)
    return folder, added


@pytest.mark.parametrize("family", BLOCKS)
def test_copies_are_compared_and_not_written(family, tmp_path, monkeypatch):
    folder, added = repeated(tmp_path, family)
    model, params = interop.load(folder, progress=False)
    jax.tree.map(
        np.testing.assert_array_equal, params, golden.load(family).params
    )
    interop.save(model, params, tmp_path / "out")
    saved = (tmp_path / "out" / "model.safetensors").read_bytes()
    known = golden.FOLDER / family / "model.safetensors"
    assert saved == known.read_bytes()
    monkeypatch.setattr(loading, "_empty", None)

    def change(arrays):
        arrays[added[0]] = arrays[added[0]] + 1

    changed.rewrite(folder, change)
    with pytest.raises(ValueError, match=f"{added[0]}: it must be the same as"):
        interop.load(folder, progress=False)
