"""Copies of golden checkpoints with other settings and tensors."""

import json
import shutil

from seqjax.interop import safetensors
from tests.interop import golden


def copy(tmp_path, family="gla", **settings):
    """A copy of a golden checkpoint with other settings."""
    folder = tmp_path / family
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden.FOLDER / family / name, folder / name)
    values = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def rewrite(folder, change):
    """Writes a checkpoint's tensors again, changed by name."""
    entries = safetensors.entries(folder)
    arrays = {name: safetensors.read(e) for name, e in entries.items()}
    change(arrays)
    tensors = [
        safetensors.Planned(name, array.dtype, array.shape)
        for name, array in arrays.items()
    ]
    path = folder / safetensors.SINGLE
    path.unlink()
    safetensors.write(path, tensors, arrays.values(), {})
