"""Flax modules: projections, gates and norms around the operators.

Every mixer is called as `y, state = layer(x, state=None, segment_ids=None)` and
makes its first state with `layer.init_state(batch, capacity)`; beside it stand
the options that a model's config has for it (`seqjax.layers.mixer`).
"""

from seqjax.layers.attention import Attention as Attention
from seqjax.layers.attention import AttentionOptions as AttentionOptions
from seqjax.layers.channels import ChannelOptions as ChannelOptions
from seqjax.layers.channels import RWKVChannelsOptions as RWKVChannelsOptions
from seqjax.layers.channels import SwiGLUOptions as SwiGLUOptions
from seqjax.layers.comba import Comba as Comba
from seqjax.layers.comba import CombaOptions as CombaOptions
from seqjax.layers.delta_mixer import DeltaState as DeltaState
from seqjax.layers.delta_net import DeltaNet as DeltaNet
from seqjax.layers.delta_net import DeltaNetOptions as DeltaNetOptions
from seqjax.layers.delta_net import GatedDeltaNetOptions as GatedDeltaNetOptions
from seqjax.layers.gated_convolution import GatedConvolution as GatedConvolution
from seqjax.layers.gated_convolution import (
    GatedConvolutionOptions as GatedConvolutionOptions,
)
from seqjax.layers.gated_delta_product import (
    GatedDeltaProduct as GatedDeltaProduct,
)
from seqjax.layers.gated_delta_product import (
    GatedDeltaProductOptions as GatedDeltaProductOptions,
)
from seqjax.layers.gla import GLA as GLA
from seqjax.layers.gla import GLAOptions as GLAOptions
from seqjax.layers.gsa import GSA as GSA
from seqjax.layers.gsa import GSAOptions as GSAOptions
from seqjax.layers.hgrn import HGRN as HGRN
from seqjax.layers.hgrn import HGRNOptions as HGRNOptions
from seqjax.layers.hgrn2 import HGRN2 as HGRN2
from seqjax.layers.hgrn2 import HGRN2Options as HGRN2Options
from seqjax.layers.initial_state import InitialState as InitialState
from seqjax.layers.kda import KDA as KDA
from seqjax.layers.kda import KDAOptions as KDAOptions
from seqjax.layers.latent_attention import LatentAttention as LatentAttention
from seqjax.layers.latent_attention import (
    LatentAttentionOptions as LatentAttentionOptions,
)
from seqjax.layers.lightnet import LightNet as LightNet
from seqjax.layers.lightnet import LightNetOptions as LightNetOptions
from seqjax.layers.lightning import Lightning as Lightning
from seqjax.layers.lightning import LightningOptions as LightningOptions
from seqjax.layers.lightning import LightningState as LightningState
from seqjax.layers.linear_attention import BasedOptions as BasedOptions
from seqjax.layers.linear_attention import LinearAttention as LinearAttention
from seqjax.layers.linear_attention import (
    LinearAttentionOptions as LinearAttentionOptions,
)
from seqjax.layers.mamba import Mamba as Mamba
from seqjax.layers.mamba import MambaOptions as MambaOptions
from seqjax.layers.mamba2 import Mamba2 as Mamba2
from seqjax.layers.mamba2 import Mamba2Options as Mamba2Options
from seqjax.layers.mamba2 import Mamba2State as Mamba2State
from seqjax.layers.mamba2_attention import Mamba2Attention as Mamba2Attention
from seqjax.layers.mamba2_attention import (
    Mamba2AttentionOptions as Mamba2AttentionOptions,
)
from seqjax.layers.mixer import HeadOptions as HeadOptions
from seqjax.layers.mixer import Host as Host
from seqjax.layers.mixer import Mixer as Mixer
from seqjax.layers.mixer import Options as Options
from seqjax.layers.mlstm import MLSTM as MLSTM
from seqjax.layers.mlstm import MLSTMOptions as MLSTMOptions
from seqjax.layers.moe import MoE as MoE
from seqjax.layers.moe import MoEOptions as MoEOptions
from seqjax.layers.norms import GatedRMSNorm as GatedRMSNorm
from seqjax.layers.norms import LayerNorm as LayerNorm
from seqjax.layers.norms import RMSNorm as RMSNorm
from seqjax.layers.retnet import RetNet as RetNet
from seqjax.layers.retnet import RetNetOptions as RetNetOptions
from seqjax.layers.retnet import RetNetState as RetNetState
from seqjax.layers.rglru import RGLRU as RGLRU
from seqjax.layers.rglru import RGLRUOptions as RGLRUOptions
from seqjax.layers.rotary import rotate as rotate
from seqjax.layers.rwkv4 import RWKV4 as RWKV4
from seqjax.layers.rwkv4 import RWKV4Options as RWKV4Options
from seqjax.layers.rwkv6 import RWKV6 as RWKV6
from seqjax.layers.rwkv6 import RWKV6Options as RWKV6Options
from seqjax.layers.rwkv7 import RWKV7 as RWKV7
from seqjax.layers.rwkv7 import RWKV7Options as RWKV7Options
from seqjax.layers.s5 import S5 as S5
from seqjax.layers.s5 import S5Options as S5Options
from seqjax.layers.shared_block import SharedBlock as SharedBlock
from seqjax.layers.shared_block import SharedBlockOptions as SharedBlockOptions
from seqjax.layers.short_convolution import ShortConvolution as ShortConvolution
from seqjax.layers.simple_gla import SimpleGLA as SimpleGLA
from seqjax.layers.simple_gla import SimpleGLAOptions as SimpleGLAOptions
from seqjax.layers.simple_gla import SimpleGLAState as SimpleGLAState
from seqjax.layers.swiglu import SwiGLU as SwiGLU
