"""Companions of the mixers that read and write memory once: no products.

convolution   causal short convolution with its activation
norm          gated RMS norm
cumsum        cumulative sum inside chunks
"""
