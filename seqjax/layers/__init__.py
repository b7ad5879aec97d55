"""Flax modules: projections, gates and norms around the operators.

Every mixer is called as `y, state = layer(x, state=None, segment_ids=None)` and
makes its first state with `layer.init_state(batch, capacity)`; beside it stand
the options that a model's config has for it (`seqjax.layers.mixer`).
"""

from seqjax.layers.attention import Attention as Attention
from seqjax.layers.attention import AttentionOptions as AttentionOptions
from seqjax.layers.initial_state import InitialState as InitialState
from seqjax.layers.lightning import Lightning as Lightning
from seqjax.layers.lightning import LightningOptions as LightningOptions
from seqjax.layers.lightning import LightningState as LightningState
from seqjax.layers.mamba2 import Mamba2 as Mamba2
from seqjax.layers.mamba2 import Mamba2Options as Mamba2Options
from seqjax.layers.mamba2 import Mamba2State as Mamba2State
from seqjax.layers.mixer import HeadOptions as HeadOptions
from seqjax.layers.mixer import Host as Host
from seqjax.layers.mixer import Mixer as Mixer
from seqjax.layers.mixer import Options as Options
from seqjax.layers.norms import GatedRMSNorm as GatedRMSNorm
from seqjax.layers.norms import RMSNorm as RMSNorm
from seqjax.layers.retnet import RetNet as RetNet
from seqjax.layers.retnet import RetNetOptions as RetNetOptions
from seqjax.layers.retnet import RetNetState as RetNetState
from seqjax.layers.rotary import rotate as rotate
from seqjax.layers.short_convolution import ShortConvolution as ShortConvolution
from seqjax.layers.simple_gla import SimpleGLA as SimpleGLA
from seqjax.layers.simple_gla import SimpleGLAOptions as SimpleGLAOptions
from seqjax.layers.simple_gla import SimpleGLAState as SimpleGLAState
from seqjax.layers.swiglu import SwiGLU as SwiGLU
