"""The trigram bar against a computation that loops over bytes."""

from collections import Counter
import math
import zlib

import numpy as np
import pytest

from experiments import baselines


def _text(seed, size):
    rng = np.random.default_rng(seed)
    states = [0, 0]
    for _ in range(size):
        states.append((states[-1] * 3 + states[-2] + rng.integers(3)) % 11)
    return bytes(65 + s for s in states)


def _counts(documents):
    one, two, three = Counter(), Counter(), Counter()
    for d in documents:
        for i in range(1, len(d)):
            one[d[i]] += 1
            two[d[i - 1 : i + 1]] += 1
            if i > 1:
                three[d[i - 2 : i + 1]] += 1
    return one, two, three


def _brute_force(model, train, held_out):
    """Bits per byte from counters, with the fitted weights as given."""
    one, two, three = _counts(train)
    bits = count = 0
    for d in held_out:
        for i in range(1, len(d)):
            ab, b, c = d[max(i - 2, 0) : i], d[i - 1], d[i]
            n_b = sum(two[bytes([b, x])] for x in range(256))
            n_ab = (
                sum(three[ab + bytes([x])] for x in range(256)) if i > 1 else 0
            )
            p1 = one[c] / sum(one.values())
            p2 = two[bytes([b, c])] / n_b if n_b else p1
            p3 = three[ab + bytes([c])] / n_ab if n_ab else p2
            parts = [p3, p2, p1, 1 / 256]
            bucket = math.floor(math.log2(n_ab)) + 1 if n_ab else 0
            p = np.dot(model._weights[bucket], parts)
            bits -= math.log2(p)
            count += 1
    return bits / count


def test_trigram_equals_brute_force():
    train = [_text(i, 120 + i) for i in range(12)] + [b"", b"x", b"yz"]
    held_out = [_text(100, 200), b"A", b"AB", bytes(range(20))]
    model = baselines.Trigram(train)
    np.testing.assert_allclose(
        model.bits_per_byte(held_out),
        _brute_force(model, train, held_out),
        rtol=1e-12,
    )


def test_trigram_is_a_distribution():
    train = [_text(i, 200) for i in range(11)]
    model = baselines.Trigram(train)
    for start in (b"AB", b"\x00\x01", b"AA"):
        total = 0.0
        for c in range(256):
            piece = next(baselines._pieces([start + bytes([c])]))
            total += model._probability(*model._estimates(piece))[-1]
        assert total == pytest.approx(1.0)


def test_fitted_weights_beat_equal_ones():
    train, held_out = [_text(i, 500) for i in range(20)], [_text(99, 2000)]
    model = baselines.Trigram(train)
    fitted = model.bits_per_byte(held_out)
    model._weights = np.full_like(model._weights, 0.25)
    assert fitted < model.bits_per_byte(held_out) - 0.05
    # Two states of eleven decide the next: three outcomes, log2(3) bits.
    assert math.log2(3) < fitted < 1.75


def test_a_single_document_and_pieces(monkeypatch):
    text = _text(3, 3000)
    whole = baselines.Trigram([text]).bits_per_byte([text])
    assert 1.0 < whole < 2.0
    documents = [_text(i, 100) for i in range(30)]
    before = baselines.Trigram(documents).bits_per_byte(documents)
    monkeypatch.setattr(baselines, "_PIECE", 250)
    model = baselines.Trigram.__new__(baselines.Trigram)
    model.__init__(documents)
    # Fitting looks at the first piece only; the counts must not differ.
    model._weights = baselines.Trigram(documents)._weights
    assert model.bits_per_byte(documents) == pytest.approx(before, rel=0.02)


def test_zlib():
    documents = [_text(i, 300) for i in range(3)]
    text = b"".join(documents)
    assert baselines.zlib_bits_per_byte(documents) == pytest.approx(
        8 * len(zlib.compress(text, 9)) / len(text)
    )
