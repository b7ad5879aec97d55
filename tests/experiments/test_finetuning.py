"""Training goes on from another project's checkpoint, and back into it."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import opened
from experiments import starting
from seqjax import data
from seqjax import interop
from seqjax import models
from seqjax.interop import checkpoint
from seqjax.parallel import mesh as mesh_lib
from seqjax.parallel import sharding
from seqjax.training import flags
from seqjax.training import loop
from seqjax.training import metrics
from seqjax.training import optimizer
from tests.interop import golden
from tests.training import tiny

VOCAB, ROWS = 97, 8
GLA = golden.FOLDER / "gla"


@pytest.fixture(name="config")
def _config(tmp_path):
    """Batches of the golden input: every step sees all of it."""
    with np.load(GLA / "golden.npz") as known:
        rows = list(known["input_ids"]) * (ROWS // 2)
    for i, row in enumerate(rows):  # a file is a document
        path = tmp_path / f"{i}.tokens"
        data.write_token_file(path, [row], vocab_size=VOCAB)
    return dataclasses.replace(
        tiny.get_config(),
        init_from=str(GLA),
        data=data.DataConfig(
            source="tokens",
            path=str(tmp_path / "*.tokens"),
            validation_path=str(tmp_path / "*.tokens"),
            validation_fraction=0.0,
            vocab_size=VOCAB,
            sequence_length=len(rows[0]),
            batch_size=ROWS,
            pack=False,
        ),
        optimizer=optimizer.OptimizerConfig(learning_rate=3e-3, warmup_steps=1),
        steps=6,
        eval_every=6,
    )


@pytest.mark.slow
def test_loss_starts_at_theirs_and_falls(config, tmp_path):
    resolved, initial = starting.resolve(config)
    assert resolved.model.family == "gla" and resolved.model.dtype == "float32"
    lines = []
    loop.run(resolved, tmp_path / "run", say=lines.append, initial=initial)
    rows = metrics.read_rows(tmp_path / "run" / "metrics.jsonl")
    losses = [row["loss"] for row in rows]
    with np.load(GLA / "golden.npz") as known:
        np.testing.assert_allclose(losses[0], known["loss"], rtol=1e-5)
    assert losses[-1] < losses[0] - 0.5
    # Their layout again, from the run's newest checkpoint.
    found = opened.open_folder(str(tmp_path / "run"), None)
    interop.save(found.model, found.params, tmp_path / "out")
    _, again = interop.load(tmp_path / "out", progress=False)
    jax.tree.map(np.testing.assert_array_equal, again, found.params)


def test_first_states_are_added(config):
    learned = dataclasses.replace(config.model, learned_initial_state=True)
    config = dataclasses.replace(config, model=learned)
    resolved, initial = starting.resolve(config)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(fsdp=2))
    rules = sharding.ShardingRules(min_size=256)
    params = initial(mesh, rules)
    checked = checkpoint.leaves(params)
    known = checkpoint.leaves(golden.load("gla").params)
    wanted = checkpoint.leaves(models.abstract_parameters(resolved.model))
    assert {p: x.shape for p, x in checked.items()} == {
        p: x.shape for p, x in wanted.items()
    }
    added = checked.keys() - known.keys()
    assert added and all("initial_state" in path for path in added)
    for path, leaf in checked.items():
        np.testing.assert_array_equal(leaf, known.get(path, 0))
        assert len(leaf.sharding.device_set) == 8
    with pytest.raises(ValueError, match="learned_initial_state: True, descr"):
        interop.save(models.LanguageModel(resolved.model), params, "nowhere")


def test_what_does_not_fit(config, tmp_path):
    def said(**changes):
        with pytest.raises(flags.ConfigError) as caught:
            starting.resolve(dataclasses.replace(config, **changes))
        return str(caught.value)

    assert "is no folder, and no hub id" in said(init_from=str(tmp_path / "x"))
    wide = dataclasses.replace(config.data, vocab_size=98)
    assert "model.vocab_size must be at least data.vocab" in said(data=wide)
    plain = dataclasses.replace(config, init_from="")
    assert starting.resolve(plain) == (plain, None)
