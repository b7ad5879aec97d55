"""xLSTM of transformers, as xLSTM 7B (`model_type` xlstm)."""

from typing import Any

from seqjax import layers
from seqjax.interop import config as config_lib
from seqjax.interop import settings as settings_lib
from seqjax.interop import tables
from seqjax.interop.families import common

_HOW = (  # it is computed
    "add_forward_backend_padding",
    "autocast_kernel_dtype",
    "chunk_size",
    "chunkwise_kernel",
    "inference_state_dtype",
    "max_inference_chunksize",
    "mlstm_round_up_to_multiple_of",
    "mode",
    "norm_reduction_force_float32",
    "return_last_states",
    "sequence_kernel",
    "step_kernel",
)


def config(s: settings_lib.Settings) -> config_lib.Config:
    """What the settings say."""
    # Published files have the second names alone.
    sizes = []
    for name, other in (
        ("hidden_size", "embedding_dim"),
        ("num_hidden_layers", "num_blocks"),
    ):
        said = s.get(name, None)
        sizes.append(s.whole(other) if said is None else s.whole(name))
        s.only(other, None, sizes[-1])
    width, depth = sizes
    s.ignored(*_HOW)
    s.ignored("igate_bias_init_range", "force_bos_token_insert", "head_dim")
    for name in ("add_out_norm", "add_post_blocks_norm"):
        s.only(name, True)
    for name in ("add_embedding_dropout", "add_post_norm", "add_qk_norm"):
        s.only(name, False)
    s.only("cell_norm_eps", 1e-6)
    s.only("use_bias", False)
    s.only("weight_mode", "single")
    s.only("eps", 1e-6)
    multiple = s.whole("ffn_round_up_to_multiple_of", 64)
    wide = width * s.number("ffn_proj_factor", 2.667)
    return config_lib.Config(
        vocab_size=s.whole("vocab_size"),
        width=width,
        heads=s.whole("num_heads", 8),
        mlp_width=int((wide + multiple - 1) // multiple) * multiple,
        tie_embeddings=s.flag("tie_word_embeddings", False),
        norm_eps=s.number("norm_eps", 1e-6),
        logit_cap=s.number("output_logit_soft_cap", 30.0),
        pattern=("mlstm",),
        repeats=depth,
        mlstm=layers.MLSTMOptions(
            key_expand=int(width * s.number("qk_dim_factor", 0.5)) / width,
            value_expand=int(width * s.number("v_dim_factor", 1.0)) / width,
            gate_cap=s.number("gate_soft_cap", 15.0),
        ),
    )


def tensors(
    t: tables.Table, config: config_lib.Config, s: dict[str, Any]
) -> None:
    """Their names and ours."""
    common.ends(t, config, "backbone.embeddings", "backbone.out_norm")
    for _, _, block in t.layers(config, "backbone.blocks.{}."):
        block.norm("mixer_norm", "norm_mlstm")
        inner = block.under("mixer/", "mlstm_layer.")
        for name in ("query", "key", "value"):
            inner.linear(name, name[0])
        inner.linear("input_gate", "igate_preact", bias=True)
        inner.linear("forget_gate", "fgate_preact", bias=True)
        inner.linear("gate", "ogate_preact")
        inner.norm("norm", "multihead_norm")
        inner.linear("out", "out_proj", inputs=2)
        block.norm("mlp_norm", "norm_ffn")
        names = "proj_up_gate", "proj_up", "proj_down"
        common.swiglu(block, "mlp", "ffn", names)
