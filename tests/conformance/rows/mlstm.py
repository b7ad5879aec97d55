"""mLSTM."""

import numpy as np

from seqjax import ops
from tests.conformance import spec
from tests.conformance.rows import common
from tests.oracles import mlstm


def mlstm_inputs(rng, B, T):
    return common.qkv(rng, B, T) | {
        "input_gate": common.f32(rng.normal(size=(B, T, 4))),
        "forget_gate": common.f32(rng.normal(size=(B, T, 4)) + 2),
    }


def mlstm_state(rng, B):
    return ops.MLSTMState(
        common.f32(rng.normal(size=(B, 4, 6, 5))),
        common.f32(rng.normal(size=(B, 4, 6))),
        common.f32(rng.normal(size=(B, 4))),
    )


def empty_state(B):
    return ops.MLSTMState(
        np.zeros((B, 4, 6, 5), np.float32),
        np.zeros((B, 4, 6), np.float32),
        np.full((B, 4), -np.inf, np.float32),
    )


def hard_gates(rng, inputs):
    """Input gates of ±1e3, forget gates from -inf to 1e4, mixed and alone."""
    i, f = np.array(inputs["input_gate"]), np.array(inputs["forget_gate"])
    i[0] *= 300
    f[0] = 1e4
    f[1] = -np.inf
    i[2] = -1e3
    f[3] = np.where(rng.random(f[3].shape) < 0.1, -1e3, 8.0)
    f[4] = np.where(rng.random(f[4].shape) < 0.3, -20.0, 3.0)
    i[5] = np.where(rng.random(i[5].shape) < 0.5, -1e3, 0.0)
    i[6] = np.where(rng.random(i[6].shape) < 0.05, 10.0, -8.0)
    f[6] = 1e4
    i[7] = -np.linspace(0, 1e3, i.shape[1])[:, None]
    f[7] = np.linspace(5, -10, f.shape[1])[:, None]
    return {
        "gates": inputs
        | {"input_gate": common.f32(i), "forget_gate": common.f32(f)}
    }


MLSTM = spec.Operator(
    name="mlstm",
    core="gated_linear_attention_scalar",
    beyond_core=True,
    function="mlstm",
    make_inputs=mlstm_inputs,
    oracle=mlstm.mlstm,
    make_state=mlstm_state,
    empty_state=empty_state,
    hard=hard_gates,
    golden=(
        spec.Golden(
            "mlstm",
            {
                "q": "q",
                "k": "k",
                "v": "v",
                "i": "input_gate",
                "f": "forget_gate",
            },
            output="h",
            initial=("c0", "n0", "m0"),
            final=("ct", "nt", "mt"),
        ),
    ),
    faults=common.QKV_FAULTS
    | {
        f"one {name} too few": (
            lambda i, name=name: i | {name: i[name][..., :3]},
            name,
            "3",
        )
        for name in ("input_gate", "forget_gate")
    },
)
