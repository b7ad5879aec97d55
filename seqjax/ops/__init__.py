"""Operators: pure functions, arrays in, arrays out, one file a family.

All share one contract.  `y, state = op(*inputs, initial_state=None,
segment_ids=None, axis_name=None, exchange=None, form=None, chunk_size=None,
implementation=None, state_dtype=None)`: the state is an argument and a result,
both differentiable; every form is the same function.  `gated_rms_norm` knows no
time and has of all this only `implementation`.
"""

from seqjax.ops import feature_maps as feature_maps
from seqjax.ops._dispatch import (
    chosen_implementations as chosen_implementations,
)
from seqjax.ops._dispatch import (
    preferred_implementation as preferred_implementation,
)
from seqjax.ops.as_matrix import as_matrix as as_matrix
from seqjax.ops.bidirectional import bidirectional as bidirectional
from seqjax.ops.comba import comba as comba
from seqjax.ops.delta_rule import delta_rule as delta_rule
from seqjax.ops.dplr_delta_rule import dplr_delta_rule as dplr_delta_rule
from seqjax.ops.gated_delta_product import (
    gated_delta_product as gated_delta_product,
)
from seqjax.ops.gated_delta_rule_2 import (
    gated_delta_rule_2 as gated_delta_rule_2,
)
from seqjax.ops.gated_linear_attention import (
    gated_linear_attention as gated_linear_attention,
)
from seqjax.ops.gated_rms_norm import gated_rms_norm as gated_rms_norm
from seqjax.ops.gated_rms_norm import rms_normalize as rms_normalize
from seqjax.ops.gated_slot_attention import GSAState as GSAState
from seqjax.ops.gated_slot_attention import (
    gated_slot_attention as gated_slot_attention,
)
from seqjax.ops.lightnet_attention import LightNetState as LightNetState
from seqjax.ops.lightnet_attention import (
    lightnet_attention as lightnet_attention,
)
from seqjax.ops.lightning_attention import alibi_slopes as alibi_slopes
from seqjax.ops.lightning_attention import (
    lightning_attention as lightning_attention,
)
from seqjax.ops.linear_attention import linear_attention as linear_attention
from seqjax.ops.linear_recurrence import linear_recurrence as linear_recurrence
from seqjax.ops.log_linear_attention import LogLinearState as LogLinearState
from seqjax.ops.log_linear_attention import (
    log_linear_attention as log_linear_attention,
)
from seqjax.ops.mlstm import MLSTMState as MLSTMState
from seqjax.ops.mlstm import mlstm as mlstm
from seqjax.ops.retention import retention as retention
from seqjax.ops.retention import retention_log_decay as retention_log_decay
from seqjax.ops.rwkv4 import RWKV4State as RWKV4State
from seqjax.ops.rwkv4 import rwkv4 as rwkv4
from seqjax.ops.rwkv6 import rwkv6 as rwkv6
from seqjax.ops.selective_scan import selective_scan as selective_scan
from seqjax.ops.short_convolution import short_convolution as short_convolution
from seqjax.ops.softmax_attention import AttentionState as AttentionState
from seqjax.ops.softmax_attention import attention_cache as attention_cache
from seqjax.ops.softmax_attention import softmax_attention as softmax_attention
from seqjax.ops.ssd import ssd as ssd
from seqjax.recurrence import real_positions as real_positions
from seqjax.recurrence import segment_starts as segment_starts
