"""Families of checkpoints, a file each.

A family is two functions: `config(settings)` says which model of ours its
settings describe, and `tensors(table, config, settings)` fills the mapping
table (`seqjax.interop.tables`), which loading and saving both read.
"""

from types import ModuleType

from seqjax.interop.families import bailing_hybrid
from seqjax.interop.families import bamba
from seqjax.interop.families import comba
from seqjax.interop.families import delta_net
from seqjax.interop.families import falcon_h1
from seqjax.interop.families import falcon_mamba
from seqjax.interop.families import gated_deltanet
from seqjax.interop.families import gated_deltaproduct
from seqjax.interop.families import gla
from seqjax.interop.families import granitemoehybrid
from seqjax.interop.families import gsa
from seqjax.interop.families import hgrn
from seqjax.interop.families import hgrn2
from seqjax.interop.families import jamba
from seqjax.interop.families import kda
from seqjax.interop.families import kimi_linear
from seqjax.interop.families import lfm2
from seqjax.interop.families import linear_attn
from seqjax.interop.families import mamba
from seqjax.interop.families import mamba2
from seqjax.interop.families import minimax
from seqjax.interop.families import nemotron_h
from seqjax.interop.families import olmo_hybrid
from seqjax.interop.families import qwen3_5
from seqjax.interop.families import qwen3_next
from seqjax.interop.families import recurrent_gemma
from seqjax.interop.families import retnet
from seqjax.interop.families import rwkv
from seqjax.interop.families import rwkv6
from seqjax.interop.families import rwkv7
from seqjax.interop.families import xlstm
from seqjax.interop.families import zamba
from seqjax.interop.families import zamba2

# By the model_type that their config.json names.
BY_TYPE: dict[str, ModuleType] = {
    "bailing_hybrid": bailing_hybrid,
    "bamba": bamba,
    "comba": comba,
    "delta_net": delta_net,
    "falcon_h1": falcon_h1,
    "falcon_mamba": falcon_mamba,
    "gated_deltanet": gated_deltanet,
    "gated_deltaproduct": gated_deltaproduct,
    "gla": gla,
    "granitemoehybrid": granitemoehybrid,
    "gsa": gsa,
    "hgrn": hgrn,
    "hgrn2": hgrn2,
    "jamba": jamba,
    "kda": kda,
    "kimi_linear": kimi_linear,
    "lfm2": lfm2,
    "linear_attn": linear_attn,
    "mamba": mamba,
    "mamba2": mamba2,
    "minimax": minimax,
    "minimax_text_01": minimax,
    "nemotron_h": nemotron_h,
    "olmo_hybrid": olmo_hybrid,
    "qwen3_5_text": qwen3_5,
    "qwen3_next": qwen3_next,
    "recurrent_gemma": recurrent_gemma,
    "retnet": retnet,
    "rwkv": rwkv,
    "rwkv6": rwkv6,
    "rwkv7": rwkv7,
    "xlstm": xlstm,
    "zamba": zamba,
    "zamba2": zamba2,
}
