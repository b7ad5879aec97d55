"""The one idea: affine maps on a state, their composition and its prefixes.

Every mixer is `S_t = A_t S_{t-1} + B_t` with a read-out.  This package owns
how `A` is stored (`transitions`), how maps compose along chunks (`prefix`) and
along devices (`devices`), and where documents cut the chain (`segments`).

Legend of dimensions, used through the whole package: B batch, T time, H heads,
K key, V value, N state, C chunk, G groups, P devices.
"""

from seqjax.recurrence.devices import EXCHANGES as EXCHANGES
from seqjax.recurrence.devices import incoming_state as incoming_state
from seqjax.recurrence.devices import last_device as last_device
from seqjax.recurrence.maximum import MaxPlus as MaxPlus
from seqjax.recurrence.maximum import prefix_maxima as prefix_maxima
from seqjax.recurrence.prefix import exclusive_prefix as exclusive_prefix
from seqjax.recurrence.segments import PADDING as PADDING
from seqjax.recurrence.segments import mask_padding as mask_padding
from seqjax.recurrence.segments import real_positions as real_positions
from seqjax.recurrence.segments import segment_starts as segment_starts
from seqjax.recurrence.stabilised import Stabilised as Stabilised
from seqjax.recurrence.stabilised import (
    incoming_stabilised as incoming_stabilised,
)
from seqjax.recurrence.stabilised import log_keep as log_keep
from seqjax.recurrence.stabilised import moved as moved
from seqjax.recurrence.stabilised import running_maxima as running_maxima
from seqjax.recurrence.stabilised import stable_weight as stable_weight
from seqjax.recurrence.transitions import Affine as Affine
from seqjax.recurrence.transitions import Decay as Decay
from seqjax.recurrence.transitions import Dense as Dense
from seqjax.recurrence.transitions import apply as apply
from seqjax.recurrence.transitions import compose as compose
from seqjax.recurrence.transitions import decay_of as decay_of
from seqjax.recurrence.transitions import identity_map as identity_map
from seqjax.recurrence.transitions import reset as reset
from seqjax.recurrence.transitions import vanishes as vanishes
from seqjax.recurrence.varying import match_varying as match_varying
from seqjax.recurrence.varying import varying_axes as varying_axes
