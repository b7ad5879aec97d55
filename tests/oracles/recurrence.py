"""One driver for every recurrent oracle: segments, padding, states.

A state is a tuple of arrays [B, ...]; a step is a function

    step(t, state) -> state, y_t

The driver resets the state to `empty` where a segment starts, and treats a
padding token (segment id -1) as the identity map with output zero.
"""

import numpy as np

from tests.oracles import tape


def real_and_start(segment_ids):
    """Two bool [B, T]: real tokens, and those that open another segment."""
    segment_ids = np.asarray(segment_ids)
    real = segment_ids >= 0
    start = np.zeros_like(real)
    for row, ids in enumerate(segment_ids):
        last = None
        for t, segment in enumerate(ids):
            if segment >= 0:
                start[row, t] = last is not None and segment != last
                last = segment
    return real, start


def _choose(mask, new, old):
    """Per row, `new` where `mask` [B] holds and `old` elsewhere."""
    shape = mask.shape + (1,) * (len(tape.constant(new).shape) - 1)
    return tape.where(mask.reshape(shape), new, old)


def run(step, state, empty, segment_ids):
    """Applies `step` to T tokens.

    Args:
        step: function of (t, state) returning (state, y_t), y_t [B, ...].
        state: tuple of arrays [B, ...], the state before the first token.
        empty: tuple of arrays like `state`: what a segment starts from.
        segment_ids: int [B, T], -1 for padding.

    Returns:
        y [B, T, ...] and the state after the last real token.
    """
    real, start = real_and_start(segment_ids)
    outputs = []
    for t in range(real.shape[1]):
        before = tuple(
            _choose(start[:, t], e, s)
            for e, s in zip(empty, state, strict=True)
        )
        after, y = step(t, before)
        outputs.append(_choose(real[:, t], y, np.zeros(y.shape)))
        state = tuple(
            _choose(real[:, t], a, s) for a, s in zip(after, state, strict=True)
        )
    return tape.stack(outputs, 1), state


def evaluate(oracle, inputs, state, segment_ids, cotangents=None):
    """Runs an oracle on numpy arrays.

    Args:
        oracle: function of (inputs, state, segment_ids) returning (y, state),
            where the arrays are tape Variables and states are tuples.
        inputs: dict of arrays.
        state: tuple of arrays.
        segment_ids: int [B, T].
        cotangents: (cotangent of y, tuple of cotangents of the state, empty for
            zeros), or None for values alone.

    Returns:
        y, the final state (tuple), and with cotangents also a dict of input
        gradients and a tuple of initial state gradients.
    """
    inputs = {name: tape.Variable(x) for name, x in inputs.items()}
    state = tuple(tape.Variable(x) for x in state)
    y, final = oracle(inputs, state, segment_ids)
    values = y.value, tuple(x.value for x in final)
    if cotangents is None:
        return values
    zeros = tuple(np.zeros(x.shape) for x in final)
    grads = tape.gradients(
        [y, *final],
        [cotangents[0], *(cotangents[1] or zeros)],
        [*inputs.values(), *state],
    )
    by_name = dict(zip(inputs, grads, strict=False))
    return (*values, by_name, tuple(grads[len(inputs) :]))
