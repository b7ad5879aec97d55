"""Options of state space families that no golden model has: round trips."""

import json

import jax
import numpy as np
import pytest

from seqjax import interop
from seqjax import models
from seqjax.interop import checkpoint
from tests.interop import golden

OPTIONS = {
    "mamba": {"use_bias": True, "use_conv_bias": False, "d_model": 32},
    "falcon_mamba": {"tie_word_embeddings": False, "time_step_rank": "auto"},
    "mamba2": {"use_conv_bias": False, "time_step_limit": [0.01, 0.5]},
    "lfm2": {"layer_types": None, "full_attn_idxs": [0], "conv_bias": True},
    "bamba": {"attention_bias": True, "mlp_bias": True, "mamba_d_head": "auto"},
    "falcon_h1": {"mamba_rms_norm": True, "mamba_norm_before_gate": False},
    "granitemoehybrid": {
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "layer_types": ["mamba", "attention", "mamba"],
    },
    "jamba": {"mamba_proj_bias": True, "num_experts": 1},
    "nemotron_h": {
        "layers_block_type": None,
        "hybrid_override_pattern": "M-M*E",
        "n_group": 2,
        "time_step_min": 0.01,
    },
    "zamba": {
        "layers_block_type": None,
        "num_hidden_layers": 8,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "n_mamba_heads": 1,
        "mamba_proj_bias": True,
        "tie_word_embeddings": False,
    },
    "zamba2": {
        "layers_block_type": ["hybrid", "mamba", "hybrid", "hybrid"],
        "num_mem_blocks": 2,
        "num_key_value_heads": 2,
        "use_shared_attention_adapter": True,
        "use_mem_rope": False,
        "mamba_ngroups": 2,
    },
}


def described(family, **changes):
    text = (golden.FOLDER / family / "config.json").read_text()
    return json.dumps(json.loads(text) | changes)


@pytest.mark.parametrize("family", OPTIONS)
def test_round_trip(family, tmp_path):
    text = described(family, **OPTIONS[family])
    (tmp_path / "config.json").write_text(text)
    config = checkpoint.plan(text, {}).config
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: noise.standard_normal(leaf.shape, np.float32),
        models.abstract_parameters(config),
    )
    model = models.LanguageModel(config)
    interop.save(model, params, tmp_path / "out", like=tmp_path / "config.json")
    again, found = interop.load(tmp_path / "out", progress=False)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_the_options_are_of_ours():
    plans = {
        family: checkpoint.plan(described(family, **changes), {}).config
        for family, changes in OPTIONS.items()
    }
    steps = plans["mamba2"].mamba2
    assert (steps.smallest_step, steps.largest_step) == (0.01, 0.5)
    assert plans["falcon_mamba"].mamba.step_rank == 2
    assert plans["lfm2"].pattern == (
        "attention",
        "gated_convolution",
        "gated_convolution",
    )
    assert plans["falcon_h1"].mamba2_attention.mamba2.norm == "gate_first"
    assert plans["granitemoehybrid"].mlps == ("swiglu",)
    assert plans["granitemoehybrid"].attention.rotary_base == 10000
    assert set(plans["jamba"].mlps) == {"swiglu"}
    nemotron = plans["nemotron_h"]
    assert nemotron.pattern == ("mamba2", "mamba2", "attention")
    assert nemotron.mlps == ("swiglu", "none", "moe")
    assert nemotron.mamba2.smallest_step == 0.01
    zamba, zamba2 = plans["zamba"], plans["zamba2"]
    hybrid = [i for i, b in enumerate(zamba.shared_blocks) if b is not None]
    assert (hybrid, zamba.repeats) == ([2, 4, 7], 1)
    assert zamba2.shared_blocks == (0, None, 1, 0)
    assert zamba2.shared_block.attention.rotary_base is None


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("mamba2", {"use_bias": True}, "use_bias = true"),
        ("mamba2", {"num_heads": 3}, "3 heads of 8"),
        ("bamba", {"time_step_limit": [1, 0]}, r"time_step_limit = \[1, 0\]"),
        ("falcon_h1", {"ssm_multipliers": [1]}, "it must be 5 numbers"),
        ("jamba", {"attn_layer_offset": 9}, "it must be from 0 to 3"),
        ("nemotron_h", {"layers_block_type": ["moe"]}, "must list mixers"),
        ("nemotron_h", {"moe_latent_size": 8}, "moe_latent_size = 8"),
        ("lfm2", {"layer_types": ["ssm"] * 3}, "layer_types = "),
        ("zamba", {"attention_hidden_size": 32}, "must be 64, twice hidden_s"),
        ("zamba", {"layers_block_type": ["mamba"] * 5}, "with 0 hybrid layers"),
        ("zamba2", {"num_mem_blocks": 3}, "one for each of 3 shared blocks"),
        ("zamba2", {"add_bias_linear": True}, "add_bias_linear = true"),
        ("zamba2", {"use_long_context": True}, "use_long_context = true"),
    ],
)
def test_refusals(family, changes, said):
    with pytest.raises(ValueError, match=said):
        checkpoint.plan(described(family, **changes), {})
