"""Files as they are published: more settings and tensors than a model needs."""

import dataclasses
import json
import math
import pathlib

import jax
import numpy as np
import pytest

from seqjax import interop
from seqjax.interop import checkpoint
from seqjax.interop import families
from seqjax.interop import loading
from seqjax.interop import safetensors
from seqjax.interop import settings as settings_lib
from tests.interop import changed
from tests.interop import golden

# Settings of published models, and how many parameters those have.
PUBLISHED = json.loads(
    pathlib.Path(__file__).with_name("published.json").read_text()
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings(name):
    values, _ = checkpoint.text_model(PUBLISHED[name]["config"])
    settings = settings_lib.Settings(values, {})
    families.BY_TYPE[values["model_type"]].config(settings)
    settings.finish(name)


@pytest.mark.full
@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes(name):
    known = PUBLISHED[name]
    plan = checkpoint.plan(json.dumps(known["config"]), {})
    leaves = jax.tree.leaves(plan.abstract)
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    assert round(count / 1e9, 3) == known["billions"]


@pytest.mark.parametrize("family", sorted(families.BY_TYPE))
def test_settings_of_another_kind_are_refused_or_without_effect(family):
    if not (golden.FOLDER / family).is_dir():
        pytest.skip("the settings of another family's model are as these")
    values = json.loads((golden.FOLDER / family / "config.json").read_text())
    for name in values.keys() - {"model_type"}:
        for wrong in (None, 0, "x", ["x"], {"x": 1}):
            settings = settings_lib.Settings(values | {name: wrong}, {})
            try:
                families.BY_TYPE[values["model_type"]].config(settings)
            except (TypeError, ArithmeticError):
                # A consequence of what has been noted.
                assert any(name in fault for fault in settings.faults())


def add(folder, **tensors):
    """Writes more tensors to a copy of a checkpoint."""
    shapes = {name.replace("__", "."): size for name, size in tensors.items()}
    changed.rewrite(
        folder,
        lambda arrays: arrays.update(
            {name: np.ones(size, np.float32) for name, size in shapes.items()}
        ),
    )


def test_tensors_that_no_model_needs_are_named(tmp_path, caplog):
    folder = changed.copy(tmp_path, "qwen3_next")
    add(folder, mtp__fc__weight=(32, 64), mtp__norm__weight=(32,))
    _, params = interop.load(folder, progress=False)
    jax.tree.map(
        np.testing.assert_array_equal, params, golden.load("qwen3_next").params
    )
    (record,) = caplog.records
    assert record.getMessage() == (
        "2 tensors, 0.0 MB, are not loaded: 2 of the prediction of later "
        "tokens (mtp.fc.weight, ...)"
    )
    add(folder, mtpx__weight=(1,))
    with pytest.raises(ValueError, match=r"1 tensors:\n.*not known: mtpx.weig"):
        interop.load(folder, progress=False)


def test_layers_after_the_last(tmp_path):
    folder = changed.copy(
        tmp_path, "bailing_hybrid", num_nextn_predict_layers=1
    )
    depth = golden.load("bailing_hybrid").model.config.depth
    add(folder, **{f"model__layers__{depth}__norm__weight": (32,)})
    interop.describe(folder)
    add(folder, **{f"model__layers__{depth + 1}__norm__weight": (32,)})
    with pytest.raises(ValueError, match="not known: model.layers"):
        interop.describe(folder)


def test_copy_of_a_tied_tensor(tmp_path, monkeypatch):
    folder = changed.copy(tmp_path, "mamba2", tie_word_embeddings=True)
    name = "backbone.embeddings.weight"

    def tie(arrays):
        arrays["lm_head.weight"] = arrays[name]

    changed.rewrite(folder, tie)
    _, params = interop.load(folder, progress=False)
    assert "unembedding" not in params["params"]
    monkeypatch.setattr(loading, "_empty", None)
    add(folder, lm_head__weight=(97, 32))
    with pytest.raises(ValueError, match=f"it must be the same as {name}"):
        interop.load(folder, progress=False)


def test_model_of_texts_inside_a_larger_one(tmp_path, caplog):
    folder = changed.copy(tmp_path, "qwen3_5")
    known = json.loads((folder / "config.json").read_text())
    tied = known.pop("tie_word_embeddings")
    outer = {
        "model_type": "qwen3_5",
        "text_config": known,
        "tie_word_embeddings": tied,
        "vision_config": {"depth": 1},
    }
    (folder / "config.json").write_text(json.dumps(outer))

    def rename(arrays):
        for name in [*arrays]:
            longer = name.replace("model.", "model.language_model.", 1)
            arrays[longer] = arrays.pop(name)
        arrays["model.visual.merger.norm.bias"] = np.zeros(3, np.float32)

    changed.rewrite(folder, rename)
    model, params = interop.load(folder, progress=False)
    assert "1 of what sees images (model.visual.merger" in caplog.text
    same = golden.load("qwen3_5")
    jax.tree.map(np.testing.assert_array_equal, params, same.params)
    # It is written as the model of texts that it is.
    interop.save(model, params, tmp_path / "out")
    entries = safetensors.entries(tmp_path / "out")
    assert (
        entries.keys() == safetensors.entries(golden.FOLDER / "qwen3_5").keys()
    )
    assert isinstance(model.config, interop.Config)
    assert model.config.family == "qwen3_5_text"
    assert interop.describe(tmp_path / "out") == model.config
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_5"}))
    with pytest.raises(ValueError, match="must hold text_config, an object"):
        interop.load(folder)


def test_minimax_in_its_own_words(tmp_path):
    folder = changed.copy(tmp_path, "minimax")
    values = json.loads((folder / "config.json").read_text())
    kinds = [kind == "full_attention" for kind in values.pop("layer_types")]
    values |= {"model_type": "minimax_text_01", "postnorm": True}
    values["attn_type_list"] = list(map(int, kinds))
    for name in ("alpha", "beta"):
        for kind in ("full_attn", "linear_attn", "mlp"):
            own = kind.replace("attn", "attention")
            value = values.pop(f"{kind}_{name}_factor")
            values[f"layernorm_{own}_{name}"] = value
    values["rope_theta"] = values.pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(values))
    constants = ("slope_rate", "_decay")

    def leave_out(arrays):
        for name in [n for n in arrays if n.endswith(constants)]:
            del arrays[name]

    changed.rewrite(folder, leave_out)
    model, params = interop.load(folder, progress=False)
    known = golden.load("minimax")
    assert isinstance(known.model.config, interop.Config)
    source = known.model.config.source
    assert (
        dataclasses.replace(model.config, source=source) == known.model.config
    )
    jax.tree.map(np.testing.assert_array_equal, params, known.params)
    interop.save(model, params, tmp_path / "out")
    entries = safetensors.entries(folder)
    assert safetensors.entries(tmp_path / "out").keys() == entries.keys()
