"""Document borders and positions, padding anywhere."""

import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import numpy as np

from seqjax import recurrence


@st.composite
def rows(draw):
    length = draw(st.integers(1, 12))
    steps = draw(st.lists(st.integers(0, 2), min_size=length, max_size=length))
    padding = draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return np.where(padding, -1, np.cumsum(steps)).astype(np.int32)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(rows())
def test_starts_and_positions_follow_their_definition(ids):
    starts, positions = [], []
    last, position = None, 0
    for token in ids:
        start = token != -1 and last is not None and token != last
        if token != -1:
            position = 0 if last is None or start else position + 1
            last = token
        starts.append(start)
        positions.append(position)
    segment_ids = jnp.asarray(ids)[None]
    np.testing.assert_array_equal(
        recurrence.segment_starts(segment_ids)[0], starts
    )
    np.testing.assert_array_equal(
        recurrence.real_positions(segment_ids)[0], positions
    )


def test_padding_is_masked_in_any_rank():
    ids = jnp.array([[0, -1, 1]], jnp.int32)
    x = jnp.ones((1, 3, 2))
    np.testing.assert_array_equal(
        recurrence.mask_padding(ids, x)[0, :, 0], [1.0, 0.0, 1.0]
    )
    assert recurrence.mask_padding(None, x) is x
