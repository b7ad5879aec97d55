"""Checkpoints of other projects in and out.

    model, params = interop.load("path/to/folder")
    interop.save(model, params, "out/")

docs/checkpoints.md lists the families.
"""

from seqjax.interop.config import Config as Config
from seqjax.interop.hub import folder as folder
from seqjax.interop.loading import describe as describe
from seqjax.interop.loading import load as load
from seqjax.interop.saving import save as save
