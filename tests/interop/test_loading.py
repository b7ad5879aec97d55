"""How checkpoints are read: what is refused, what is held, where it goes."""

import json
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seqjax import interop
from seqjax import models
from seqjax.interop import checkpoint
from seqjax.interop import loading
from seqjax.interop import safetensors
from seqjax.interop import tables
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from tests.interop import changed
from tests.interop import golden

GLA = golden.FOLDER / "gla"


@pytest.fixture
def no_arrays(monkeypatch):
    """Whatever is refused is refused before a parameter is made."""

    def made(*args):
        raise AssertionError("a parameter was made")

    monkeypatch.setattr(loading, "_empty", made)


def refusal(folder, **arguments):
    with pytest.raises(ValueError) as caught:
        interop.load(folder, progress=False, **arguments)
    return str(caught.value)


@pytest.mark.usefixtures("no_arrays")
class TestRefusals:
    def test_unknown_architecture(self, tmp_path):
        said = refusal(changed.copy(tmp_path, model_type="llama"))
        assert "model_type 'llama'" in said and "'gla'" in said

    def test_options_all_at_once(self, tmp_path):
        said = refusal(
            changed.copy(
                tmp_path,
                use_gv=True,
                hidden_act="gelu",
                hidden_size=0,
                sliding=3,
                attn={"layers": [7], "num_heads": 2, "qkv_bias": True, "x": 1},
            )
        )
        for line in (
            "use_gv = true is not supported; it must be false",
            'hidden_act = "gelu" is not supported; it must be "swish" or',
            "hidden_size = 0 is not supported; it must be a whole number",
            "sliding = 3 is not supported; known are",
            "attn.layers = [7] is not supported; it must list layers from 0",
            "attn.qkv_bias = true is not supported",
            "attn.x = 1 is not supported",
        ):
            assert line in said, said

    def test_setting_that_is_missing(self, tmp_path):
        folder = changed.copy(tmp_path)
        values = json.loads((folder / "config.json").read_text())
        del values["vocab_size"]
        (folder / "config.json").write_text(json.dumps(values))
        assert "vocab_size is missing" in refusal(folder)

    def test_tensors_all_at_once(self, tmp_path):
        folder = changed.copy(tmp_path)

        def change(arrays):
            del arrays["model.norm.weight"]
            arrays["extra.bias"] = np.zeros(3, np.float32)
            name = "model.layers.1.attn.q_proj.weight"
            arrays[name] = arrays[name].T.copy()
            arrays["lm_head.weight"] = np.zeros((97, 32), np.int32)

        changed.rewrite(folder, change)
        said = refusal(folder)
        assert "4 tensors" in said
        for line in (
            "missing: model.norm.weight [32]",
            "not known: extra.bias [3]",
            "misshapen: model.layers.1.attn.q_proj.weight is [32, 16], but "
            "config.json asks for [16, 32]",
            "no floats: lm_head.weight is int32",
        ):
            assert line in said, said

    def test_sizes_that_do_not_fit_the_tensors(self, tmp_path):
        said = refusal(
            changed.copy(tmp_path, hidden_size=64, num_hidden_layers=3)
        )
        assert "missing: model.layers.2.attn_norm.weight [64]" in said
        assert "norm.weight is [32], but config.json asks for [64]" in said

    def test_files(self, tmp_path):
        folder = changed.copy(tmp_path)
        path = folder / safetensors.SINGLE
        data = path.read_bytes()
        path.write_bytes(data[:-8])
        assert "the tensors end at byte" in refusal(folder)
        path.write_bytes(data[:100])
        assert "no safetensors file, or cut off: 100 bytes" in refusal(folder)
        path.write_bytes(data[:8] + b"x" + data[9:])
        assert "model.safetensors is damaged" in refusal(folder)
        path.unlink()
        assert "must hold model.safetensors" in refusal(folder)
        (folder / "config.json").unlink()
        path.write_bytes(data)
        assert "must hold config.json" in refusal(folder)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"data_offsets": [-128, 0]}, "model.norm.weight is {"),
            ({"data_offsets": [0, 128]}, "begins at byte"),
            ({"data_offsets": None}, "model.norm.weight is {"),
            ({"shape": [-4, -8]}, "model.norm.weight is {"),
            ({"dtype": "F4"}, "dtypes are ['F64', 'F32'"),
            ([1], "model.norm.weight is [1]"),
            ("twice", "['model.norm.weight'] are there twice"),
        ],
    )
    def test_headers(self, change, said, tmp_path):
        folder = changed.copy(tmp_path)
        path, name = folder / safetensors.SINGLE, "model.norm.weight"
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        if isinstance(change, dict):
            header[name] |= change
        text = json.dumps(header | ({name: [1]} if change == [1] else {}))
        if change == "twice":
            text = text[:-1] + f', "{name}": {json.dumps(header[name])}}}'
        size = len(text).to_bytes(8, "little")
        path.write_bytes(size + text.encode() + data[8 + length :])
        assert said in refusal(folder)

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            "{}",
            '{"weight_map": {"a": 3}}',
            '{"weight_map": ["../a"]}',
        ],
    )
    def test_indices(self, text, tmp_path):
        folder = changed.copy(tmp_path)
        (folder / safetensors.INDEX).write_text(text)
        said = refusal(folder)
        assert "index.json is damaged" in said or "must hold weight_map" in said

    @pytest.mark.parametrize(
        "text", ["{", "[]", '{"model_type": [1]}', "\udcff"]
    )
    def test_configs(self, text, tmp_path):
        folder = changed.copy(tmp_path)
        data = text.encode(errors="surrogateescape")
        (folder / "config.json").write_bytes(data)
        assert "config.json" in refusal(folder)

    def test_dtypes(self, tmp_path):
        for wrong in ("int8", "float8", "half-wit", 3):
            assert "dtype must be one of" in refusal(GLA, dtype=wrong)
        folder = changed.copy(tmp_path)

        def widen(arrays):
            arrays["model.norm.weight"] = arrays["model.norm.weight"] * 1.0
            name = "lm_head.weight"
            arrays[name] = arrays[name].astype(np.float64)

        changed.rewrite(folder, widen)
        assert "needs jax_enable_x64, for ['unembedding']" in refusal(folder)

    def test_places(self, tmp_path, monkeypatch):
        assert "is no folder, and no hub id" in refusal(tmp_path / "none")
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
        assert "pip install 'seqjax[hub]'" in refusal("owner/name@main")


def test_one_tensor_at_a_time(monkeypatch):
    buffers, read = [], safetensors.read

    def watched(entry, buffer):
        buffers.append(buffer)
        return read(entry, buffer)

    monkeypatch.setattr(safetensors, "read", watched)
    interop.load(GLA, progress=False)
    assert len(buffers) == len(safetensors.entries(GLA))
    assert len({buffer.ctypes.data for buffer in buffers}) == 1
    assert buffers[0].nbytes == 97 * 32 * 4  # the largest tensor


def test_dtype_by_argument(tmp_path):
    model, params = interop.load(GLA, dtype=jnp.bfloat16, progress=False)
    assert model.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
        np.dtype(jnp.bfloat16)
    }
    interop.save(model, params, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    _, again = interop.load(tmp_path / "out", progress=False)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    model, wide = interop.load(
        tmp_path / "out", dtype="float32", progress=False
    )
    assert model.config.dtype == "float32"
    jax.tree.map(np.testing.assert_array_equal, wide, params)


def test_on_a_mesh_in_several_files(tmp_path):
    model, params = golden.load("rwkv6")[:2]
    interop.save(model, params, tmp_path / "out", max_file_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) > 5 and files[-1] == "model.safetensors.index.json"
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(data=2, fsdp=4))
    rules = sharding.ShardingRules(min_size=256)
    _, placed = interop.load(
        tmp_path / "out", mesh=mesh, rules=rules, progress=False
    )
    jax.tree.map(np.testing.assert_array_equal, placed, params)
    key = placed["params"]["layers"]["layer_0"]["mlp"]["key"]["kernel"]
    assert key.sharding.spec == jax.sharding.PartitionSpec(None, None, "fsdp")
    assert key.addressable_shards[0].data.shape == (2, 32, 12)
    index = tmp_path / "out" / safetensors.INDEX
    values = json.loads(index.read_text())
    values["weight_map"]["lm_head.weight"] = files[2]
    index.write_text(json.dumps(values))
    assert "disagree on where these tensors lie: ['lm_head.weight']" in refusal(
        tmp_path / "out"
    )
    (tmp_path / "out" / files[3]).unlink()
    assert f"names files that are not there: ['{files[3]}']" in refusal(
        tmp_path / "out"
    )


def test_a_write_on_a_mesh_gathers_nothing():
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=8))
    split = jax.sharding.PartitionSpec(None, None, "fsdp")
    split = jax.sharding.NamedSharding(mesh, split)
    param = jax.device_put(np.zeros((3, 4, 64), np.float32), split)
    # Columns 20 to 50 of a row: parts of three devices and all of one.
    shape = 30, 4
    link = tables.Link(
        "x", shape, shape, None, (1, 0), "y", (1, 0, 20), (1, 4, 30)
    )
    tensor = np.arange(120, dtype=np.float32).reshape(shape)
    wanted = np.zeros(param.shape, np.float32)
    wanted[1, :, 20:50] = tensor.T
    index = low = high = (np.int64(0),) * 3
    program = loading._write_masked.lower(
        param, param[:1], index, low, high
    ).compile()
    assert not re.search("all-(gather|reduce|to-all)", program.as_text() or "")
    param = loading._write_on_mesh(param, tensor, link)
    np.testing.assert_array_equal(param, wanted)
    assert param.sharding.is_equivalent_to(split, 3)


def test_hub(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision))
        assert "*.safetensors" in allow_patterns
        return str(GLA)

    hub = types.SimpleNamespace(snapshot_download=snapshot_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert interop.describe("owner/name@v1") == interop.describe(GLA)
    assert interop.folder("owner/name") == GLA
    assert asked == [("owner/name", "v1"), ("owner/name", None)]
    assert interop.folder(tmp_path) == tmp_path and len(asked) == 2


def test_sizes_that_the_tensors_tell(tmp_path):
    folder = changed.copy(
        tmp_path, "rwkv7", v_low_rank_dim=None, decay_low_rank_dim=None
    )
    entries = safetensors.entries(folder)
    shapes = {name: entry.shape for name, entry in entries.items()}
    text = (folder / "config.json").read_text()
    plan = checkpoint.plan(text, shapes)
    assert plan.config.rwkv7.value_rank == plan.config.rwkv7.decay_rank == 8
    # What is saved says them.
    assert json.loads(plan.config.source)["v_low_rank_dim"] == 8
    with pytest.raises(ValueError, match=r"v_lora.lora.0.weight.*is missing"):
        checkpoint.plan(text, {})


ATTENTION = {"layers": [1, 3], "num_heads": 4, "num_kv_heads": 2}
OPTIONS = {
    "gla": {"use_short_conv": True, "use_output_gate": False},
    "delta_net": {"use_short_conv": False, "use_gate": True},
    "gated_deltanet": {"num_v_heads": 4, "use_gate": False},
    "gated_deltaproduct": {"use_forget_gate": False, "num_householder": 3},
    "kda": {"safe_gate": True, "lower_bound": -5.0},
    "comba": {"use_inner_decay": False, "use_output_correction": False},
    "hgrn": {"use_lower_bound": False, "tie_word_embeddings": True},
    "hgrn2": {"expand_ratio": 8},
    "linear_attn": {"feature_map": "elu", "norm_feature_map": True},
    "retnet": {"expand_k": 0.5, "fuse_norm": False},
    "gsa": {"use_short_conv": True},
    "rwkv6": {"expand_k": 1.0, "intermediate_size": None},
    "rwkv7": {
        "norm_first": False,
        "value_dim": [64] * 4,
        "attn": ATTENTION | {"window_size": 9},
    },
}


@pytest.mark.parametrize("family", OPTIONS)
def test_other_options_and_attention_layers(family, tmp_path):
    """No golden model has them: what is saved is what is loaded."""
    text = (golden.FOLDER / family / "config.json").read_text()
    values = json.loads(text) | {"num_hidden_layers": 4, "attn": ATTENTION}
    values |= OPTIONS[family]
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = checkpoint.plan(json.dumps(values), {}).config
    assert config.pattern[1] == "attention" and config.repeats == 2
    assert config.attention.key_value_heads == 2
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: noise.standard_normal(leaf.shape, np.float32),
        models.abstract_parameters(config),
    )
    for path, leaf in checkpoint.leaves(params).items():
        if "layer_0/mixer/mixture" in path:
            leaf[0] = 0  # the first layer has none
    model = models.LanguageModel(config)
    interop.save(model, params, tmp_path / "out", like=tmp_path / "config.json")
    again, found = interop.load(tmp_path / "out", progress=False)
    assert again.config == config
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_what_save_refuses(tmp_path):
    model, params = golden.load("gla")[:2]
    plain = models.LanguageModelConfig()

    def said(*arguments, **more):
        with pytest.raises(ValueError) as caught:
            interop.save(*arguments, **more)
        return str(caught.value)

    out = tmp_path / "out"
    assert "pass like=" in said(models.LanguageModel(plain), params, out)
    other = models.LanguageModel(plain)
    text = said(other, params, out, like=GLA / "config.json")
    assert "width: 256, described is 32" in text and "tie_embeddings" in text
    text = said(model, {"params": {"embedding": np.zeros((97, 31))}}, out)
    assert "embedding: [97, 31], must be [97, 32]" in text
    assert "final_norm/scale: missing, must be [32]" in text
    assert not out.exists()
    assert "has ['config.json', 'model.safetensors']" in said(
        model, params, changed.copy(tmp_path)
    )


def test_progress_is_shown(capsys):
    interop.load(GLA)
    assert "100%  0.1 MB" in capsys.readouterr().err
