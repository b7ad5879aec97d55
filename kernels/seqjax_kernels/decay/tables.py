"""Tiles of every kernel by kind of device, for all shapes.

Found by compiling, none by a clock: tiles that hold their numbers in registers,
and but for grouped heads at chunks of 64 and some kernels of 8.0 and 10.0 spill
none; larger ones may fit too.  What they take is held to resources.json.  Other
devices of a compute capability here have its entries.
"""

from seqjax_kernels import configs

Key = configs.Key
Entries = dict[Key, tuple[int, int, int, int]]

# key tile, value tile, warps, pipeline stages
_ALL: Entries = {
    Key("channel_states", "bf16", 32): (32, 64, 4, 2),
    Key("channel_scores", "bf16", 32): (32, 64, 4, 2),
    Key("channel_walk", "bf16", 32): (32, 64, 4, 2),
    Key("channel_keys", "bf16", 32): (16, 32, 4, 1),
    Key("channel_states", "fp32", 16): (32, 64, 4, 2),
    Key("channel_scores", "fp32", 16): (32, 64, 4, 2),
    Key("channel_walk", "fp32", 16): (32, 64, 4, 2),
    Key("channel_keys", "fp32", 16): (16, 16, 4, 1),
    Key("states", "bf16", 32): (64, 64, 4, 3),
    Key("walk", "bf16", 32): (64, 64, 4, 3),
    Key("keys", "bf16", 32): (32, 32, 2, 2),
    Key("keys_grouped", "bf16", 32): (16, 32, 2, 2),
    Key("states", "fp32", 32): (32, 64, 4, 2),
    Key("walk", "fp32", 32): (32, 64, 4, 2),
    Key("keys", "fp32", 32): (16, 16, 2, 1),
}
# Smaller chunks take less, and have the tiles of the larger.
_ALL |= {
    key._replace(chunk=16): tiles
    for key, tiles in _ALL.items()
    if key.chunk == 32
}
# Warpgroup products, which compute capability 9.0 alone has here.
_CHUNKS_OF_64: Entries = {
    Key("states", "bf16", 64): (64, 64, 4, 3),
    Key("walk", "bf16", 64): (64, 64, 4, 3),
    Key("keys", "bf16", 64): (64, 64, 4, 2),
    Key("keys_grouped", "bf16", 64): (32, 32, 4, 2),
}
TABLE: dict[str, Entries] = {
    "H200": _ALL | _CHUNKS_OF_64,
    "A100": _ALL,
    "B200": _ALL,
}
