"""The operators under test: the suite runs over this table and nothing else."""

from tests.conformance.rows import attention
from tests.conformance.rows import channel
from tests.conformance.rows import convolution
from tests.conformance.rows import delta
from tests.conformance.rows import delta_channel
from tests.conformance.rows import elementwise
from tests.conformance.rows import linear
from tests.conformance.rows import log_linear
from tests.conformance.rows import mlstm
from tests.conformance.rows import slots
from tests.conformance.rows import state_space

OPERATORS = (
    linear.LINEAR_ATTENTION,
    linear.NORMALISED,
    linear.RETENTION,
    linear.LIGHTNING,
    linear.GATED,
    channel.GATED,
    channel.RWKV6,
    state_space.SSD,
    elementwise.LINEAR_RECURRENCE,
    elementwise.COMPLEX_RECURRENCE,
    elementwise.SELECTIVE_SCAN,
    elementwise.RWKV4,
    mlstm.MLSTM,
    log_linear.LOG_LINEAR,
    slots.LIGHTNET,
    slots.SLOTS,
    delta.DELTA,
    delta.VALUE_DELTA,
    delta.GATED_DELTA,
    delta.PRODUCT,
    delta.COMBA,
    delta_channel.KDA,
    delta_channel.GDN2,
    delta_channel.DPLR,
    convolution.CONVOLUTION,
    attention.ATTENTION,
    attention.WINDOW,
    attention.FORGET,
)
