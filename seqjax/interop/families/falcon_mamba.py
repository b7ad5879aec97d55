"""FalconMamba of transformers (`model_type` falcon_mamba).

Mamba whose selection is normalised, without parameters.
"""

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop.families import mamba


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    options = layers.MambaOptions(
        eps=s.number("mixer_rms_eps", 1e-6), selection_norm="plain"
    )
    return mamba.described(s, options)


tensors = mamba.tensors
