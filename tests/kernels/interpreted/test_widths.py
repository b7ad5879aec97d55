"""Keys and values of up to 256 channels, in whole tiles and not."""

import pytest

from seqjax_kernels.decay import configs
from tests.kernels.interpreted import test_channel_decay as channel_tests
from tests.kernels.interpreted import test_scalar_decay as scalar_tests


@pytest.mark.parametrize(
    ("key", "value", "dtype"),
    [(200, 136, "float32"), (256, 256, "bfloat16")],
)
@pytest.mark.parametrize("channels", [False, True])
def test_widths(channels, key, value, dtype, monkeypatch):
    if dtype == "float32":
        # Two chunks, each a part of the sequence.
        length, chunk_size = 18, 16
        monkeypatch.setattr(configs, "parts", lambda *_: 2)
    else:
        length, chunk_size = 30, None
    tests = channel_tests if channels else scalar_tests
    arrays, bars = tests.case(
        (1, length, 1, 1, key, value), dtype=dtype, gate="mild"
    )
    bound = scalar_tests.BOUNDS[dtype]
    if channels:
        found = channel_tests.run(arrays, bars, chunk_size)
        channel_tests.check(arrays, bars, found, bound)
    else:
        scalar_tests.check(arrays, bars, bound, chunk_size)
