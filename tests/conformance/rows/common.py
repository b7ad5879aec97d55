"""What rows share: inputs, hard numbers, faults."""

import numpy as np

# Gates of each row of a board: no decay, almost none, strong, total, and one
# overwhelming gate among weak ones, which a plain cumulative sum cannot carry.
HARD_GATES = (0.0, -1e-6, -20.0, -1e4, -np.inf)


def f32(x):
    return np.asarray(x, np.float32)


def head_state(*shape):
    """make_state for one array [B, *shape]."""
    return lambda rng, B: f32(rng.normal(size=(B, *shape)))


def qkv(rng, B, T, Hk=2, H=4, K=6, V=5):
    """Grouped heads, K and V unequal and no powers of two."""
    return {
        "q": f32(rng.normal(size=(B, T, Hk, K))),
        "k": f32(rng.normal(size=(B, T, Hk, K))),
        "v": f32(rng.normal(size=(B, T, H, V))),
    }


def hard_gates(rng, inputs, name="log_decay"):
    """One problem whose rows are the hard gates, the last three mixed."""
    gate = np.array(inputs[name])
    for row, value in enumerate(HARD_GATES):
        gate[row] = value
    shape = gate[0].shape
    gate[5] = np.where(rng.random(shape) < 0.1, -1e4, -0.05)
    gate[5] = np.where(rng.random(shape) < 0.05, -1e38, gate[5])
    gate[6] = np.where(rng.random(shape) < 0.3, -20.0, -8 * rng.random(shape))
    gate[7] = np.where(rng.random(shape) < 0.5, -np.inf, -1e-6)
    return {"gates": inputs | {name: f32(gate)}}


def equal_keys(rng, inputs):
    """All keys equal, nearly parallel, or orthogonal and repeating."""
    k = inputs["k"]
    one = np.broadcast_to(k[:, :1], k.shape)
    basis = np.eye(k.shape[-1])[np.arange(k.shape[1]) % k.shape[-1]]
    return {
        "keys equal": inputs | {"k": f32(one)},
        "keys parallel": inputs
        | {"k": f32(one + 1e-3 * rng.normal(size=k.shape))},
        "keys orthogonal": inputs
        | {"k": f32(np.broadcast_to(basis[None, :, None], k.shape))},
    }


def wrong_heads(name, heads=3):
    """A fault: `name` with a number of heads that divides nothing here."""

    def change(inputs):
        x = inputs[name]
        x = np.repeat(x, heads, 2)[:, :, :heads]
        return inputs | {name: x}

    return change


QKV_FAULTS = {
    "value heads no multiple of key heads": (wrong_heads("v"), "v", "3"),
    "q and k heads differ": (wrong_heads("k"), "k", "3"),
    "key width differs": (
        lambda i: i | {"k": np.concatenate([i["k"], i["k"]], -1)},
        "k",
        "12",
    ),
}

DECAY_FAULTS = QKV_FAULTS | {
    "one decay too few": (
        lambda i: i | {"log_decay": i["log_decay"][..., :3]},
        "log_decay",
        "3",
    ),
}
