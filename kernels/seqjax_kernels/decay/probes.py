"""Kernels as they are compiled to choose their tiles: the most they ever hold.

A gate a token, documents, keys and values of 256 channels.  Shapes only change
how often loops run, so what these take every shape takes.
"""

from seqjax_kernels import _direct
from seqjax_kernels import configs

_T, _H, _WIDTH = 4096, 16, 256
_REPEAT = 4  # value heads of one program, where heads are grouped


def program_of(key: configs.Key, tiles, arch: int) -> _direct.Program:
    """What is compiled for a kernel and its tiles.

    Args:
      key: of `seqjax_kernels.decay.configs.CANDIDATES`.
      tiles: `seqjax_kernels.decay.configs.Tiles`.
      arch: compute capability.
    """
    make = dict(
        states=_states,
        walk=_walk,
        keys=_keys,
        keys_grouped=_keys,
        channel_states=_states,
        channel_scores=_channel_scores,
        channel_walk=_channel_walk,
        channel_keys=_channel_keys,
    )[key.kernel]
    channels = key.kernel.startswith("channel")
    kernel, outputs, more = make(key)
    constants = dict(
        T=_T,
        G=_H // _REPEAT if key.kernel == "keys_grouped" else _H,
        H=_H,
        K=_WIDTH,
        V=_WIDTH,
        C=key.chunk,
        SCALE=0.1,
        GATE=3 if channels else 2,
        DOT=key.operand,
        PRECISION="ieee" if key.operand == "bf16" else "tf32x3",
        BK=tiles.key,
        BV=tiles.value,
        **more,
    )
    token = "bfloat16" if key.operand == "bf16" else "float32"
    dtypes = dict(gate="float32", starts="int8", first="float32")
    dtypes |= outputs
    arrays = [n for n in kernel.arg_names if n not in constants]
    pointers = tuple((n, dtypes.get(n, token)) for n in arrays)
    return _direct.Program(
        kernel,
        tuple((n, d) for n, d in pointers if d is not None),
        (
            *((n, c) for n, c in constants.items() if n in kernel.arg_names),
            *((n, None) for n, d in pointers if d is None),
        ),
        tiles.warps,
        tiles.stages,
        arch,
    )


def _states(key):
    from seqjax_kernels.decay import states

    outputs = dict(last="float32", part_writes=None, part_decays=None)
    return states.states_kernel, outputs, dict(PARTS=1, REVERSE=False)


def _walk(key):
    from seqjax_kernels.decay import walk

    return walk.walk_kernel, {}, dict(REVERSE=True)


def _keys(key):
    from seqjax_kernels.decay import key_gradients

    outputs = dict(gate_bar="float32")
    if key.kernel == "keys_grouped":
        outputs |= dict(q_bar="float32", k_bar="float32")
    return key_gradients.key_gradients_kernel, outputs, dict(SHARES=1)


def _channel_scores(key):
    from seqjax_kernels.decay import channel_scores

    more = dict(HALVINGS=key.chunk.bit_length() - 1)
    return channel_scores.channel_scores_kernel, {}, more


def _channel_walk(key):
    from seqjax_kernels.decay import channel_walk

    more = dict(REVERSE=True, READ_SCALE=1.0)
    return channel_walk.channel_walk_kernel, {}, more


def _channel_keys(key):
    from seqjax_kernels.decay import channel_keys

    more = dict(HALVINGS=key.chunk.bit_length() - 1)
    outputs = dict(gate_bar="float32")
    return channel_keys.channel_keys_kernel, outputs, more
