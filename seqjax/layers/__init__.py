"""Flax modules: projections, gates and norms around the operators.

Every mixer is called as `y, state = layer(x, state=None, segment_ids=None)` and
makes its first state with `layer.init_state(batch, capacity)`.
"""

from seqjax.layers.attention import Attention as Attention
from seqjax.layers.lightning import Lightning as Lightning
from seqjax.layers.lightning import LightningState as LightningState
from seqjax.layers.mamba2 import Mamba2 as Mamba2
from seqjax.layers.mamba2 import Mamba2State as Mamba2State
from seqjax.layers.norms import GatedRMSNorm as GatedRMSNorm
from seqjax.layers.norms import RMSNorm as RMSNorm
from seqjax.layers.retnet import RetNet as RetNet
from seqjax.layers.retnet import RetNetState as RetNetState
from seqjax.layers.rotary import rotate as rotate
from seqjax.layers.short_convolution import ShortConvolution as ShortConvolution
from seqjax.layers.simple_gla import SimpleGLA as SimpleGLA
from seqjax.layers.simple_gla import SimpleGLAState as SimpleGLAState
from seqjax.layers.swiglu import SwiGLU as SwiGLU
