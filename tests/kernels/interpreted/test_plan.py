"""Where the taps of packed documents look, against lists in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax_kernels.pointwise import configs
from seqjax_kernels.pointwise import convolution

PADDING, INITIAL = convolution.PADDING, convolution.INITIAL
LENGTH = 50


def rows(kind):
    rng = np.random.default_rng(3)
    ids = np.sort(rng.integers(0, 6, size=(3, LENGTH)), axis=1)
    if kind == "padding anywhere":
        ids[rng.random(ids.shape) < 0.4] = PADDING
        ids[2] = PADDING
        ids[1, 0], ids[1, 1:] = 3, PADDING  # fewer tokens than taps
    elif kind == "padding behind":
        ids[:, 37:] = PADDING
    return ids.astype(np.int32)


def expected(ids, taps, initial_ids):
    """(sources, targets by place and tap, entries of the state) of a row."""
    window = taps - 1
    real = [t for t in range(LENGTH) if ids[t] != PADDING]
    first = ids[real[0]] if real else PADDING
    front = [first if i == INITIAL else i for i in initial_ids]
    entries = [*range(-window, 0), *real]
    id_of = dict(zip(range(-window, 0), front, strict=True))
    id_of |= {t: ids[t] for t in real}
    sources = np.full((LENGTH, taps), -taps)
    targets = {}
    for p, place in enumerate(entries):
        for tap in range(min(taps, p + 1)):
            source = entries[p - tap]
            if place >= 0 and id_of[source] == id_of[place]:
                sources[place, tap] = source
                targets[source, tap] = place
    state = entries[len(entries) - window :] if window else []
    last = [p if id_of[p] == id_of[state[-1]] else None for p in state]
    return sources, targets, last


@pytest.mark.parametrize(
    "kind", ["packed", "padding behind", "padding anywhere"]
)
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("size", [16, 64])  # in blocks, and in one
def test_plans(kind, taps, size, monkeypatch):
    monkeypatch.setattr(configs, "plan", lambda *_: (size, size))
    ids, window = rows(kind), taps - 1
    given = np.full((3, window), INITIAL)
    given[0, :1] = PADDING  # as where tokens in front are too few
    given[1] = ids[1, 0]
    given[1, : window - 1] = PADDING
    plan = convolution.make_plan(
        jnp.asarray(ids), taps, jnp.asarray(given, jnp.int32)
    )
    assert [p.shape for p in plan] == [
        (3, LENGTH, taps),
        (3, LENGTH + window, taps + 1),
        (3, window),
    ]
    for row in range(3):
        found = [np.asarray(p[row]) for p in plan]
        sources, targets, last = expected(ids[row], taps, given[row])
        np.testing.assert_array_equal(found[0], sources)
        for place in range(-window, LENGTH):
            for tap in range(taps):
                token = found[1][place + window, tap]
                # What looks from padding has a cotangent of 0.
                if token >= 0 and ids[row, token] == PADDING:
                    token = -1
                wanted = targets.get((place, tap), -1)
                assert max(token, -1) == wanted, (row, place, tap)
            slot = found[1][place + window, taps]
            wanted = last.index(place) if place in last else -1
            assert max(slot, -1) == wanted, (row, place)
        for place, wanted in zip(found[2], last, strict=True):
            assert place == (-taps if wanted is None else wanted)


def test_under_vmap():
    ids = jnp.asarray(rows("padding anywhere"))

    def make(ids):
        return convolution.make_plan(ids[None], 3)

    batched = jax.vmap(make)(ids)
    for found, whole in zip(
        batched, convolution.make_plan(ids, 3), strict=True
    ):
        np.testing.assert_array_equal(found[:, 0], whole)
