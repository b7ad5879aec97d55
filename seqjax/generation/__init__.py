"""Text from a model: prefill, decode, sampling."""

from seqjax.generation.decoding import DecodeCache as DecodeCache
from seqjax.generation.decoding import decode as decode
from seqjax.generation.decoding import prefill as prefill
from seqjax.generation.generate import generate as generate
from seqjax.generation.sampling import Sampler as Sampler
from seqjax.generation.sampling import row_keys as row_keys
