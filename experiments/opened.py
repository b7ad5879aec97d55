"""A model from a folder: a checkpoint of another project, or a run of ours."""

import dataclasses
import json
import pathlib
import typing
from typing import Any, NamedTuple

import jax

from seqjax import interop
from seqjax import models
from seqjax.interop import loading
from seqjax.parallel import sharding
from seqjax.training import binding
from seqjax.training import checkpoints
from seqjax.training import config as config_lib
from seqjax.training import programs


class Opened(NamedTuple):
    """What a command needs of a model.

    Attributes:
      model: the module.
      params: its variables.
      folder: where it lies.
      stop_tokens: those that end a text.
      bytes: whether its tokens are known to be bytes.
      longest: tokens of the longest text that it was made for; None: unknown.
    """

    model: models.LanguageModel
    params: dict[str, Any]
    folder: pathlib.Path
    stop_tokens: tuple[int, ...]
    bytes: bool
    longest: int | None = None


def open_folder(path: str, dtype: str | None) -> Opened:
    """Loads a model.

    Args:
      path: a folder of another project's checkpoint or its hub id, or the
        workdir of a training run, whose newest checkpoint is taken.
      dtype: of the parameters and the computation; None for that of the
        files, or of the run.

    Raises:
      ValueError: it cannot be read, with the reason.
    """
    if dtype is not None:
        loading.checked_dtype(dtype)
    folder = pathlib.Path(path).expanduser()
    if (folder / "checkpoints").is_dir():
        return _run(folder, dtype)
    model, params = interop.load(path, dtype=dtype)
    assert isinstance(model.config, interop.Config)
    source, folder = json.loads(model.config.source), interop.folder(path)
    longest = source.get("max_position_embeddings")
    return Opened(
        model,
        params,
        folder,
        _stops(source, folder, model.config.vocab_size),
        False,
        longest if type(longest) is int else None,
    )


def _stops(
    source: dict[str, Any], folder: pathlib.Path, vocab_size: int
) -> tuple[int, ...]:
    """Tokens that end a text, as config.json or generation_config.json says."""
    said, path = [source], folder / "generation_config.json"
    if path.is_file():
        try:
            said.append(dict(json.loads(path.read_text("utf-8"))))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    ends: list[Any] = []
    for one in said:
        end = one.get("eos_token_id")
        ends += end if isinstance(end, list) else [end]
    real = (end for end in ends if type(end) is int and 0 <= end < vocab_size)
    return tuple(dict.fromkeys(real))


def _run(folder: pathlib.Path, dtype: str | None) -> Opened:
    """The newest intact checkpoint of a training run."""
    kept = binding.kept(folder)
    if not kept:
        raise ValueError(f"{folder}/config.json is lost or damaged")
    config = _from_dict(config_lib.TrainConfig, kept)
    # Where the run took place does not matter here.
    config = dataclasses.replace(
        config,
        mesh=type(config.mesh)(),
        accumulation=1,
        data=dataclasses.replace(config.data, batch_size=jax.device_count()),
    )
    built = programs.Programs(config, sharding.ShardingRules())
    store = checkpoints.CheckpointStore(
        folder / "checkpoints", keep=1, read_only=True
    )
    restored = store.restore(built.abstract_state)
    if restored is None:
        raise ValueError(f"{folder}/checkpoints holds no checkpoint yet")
    model, params = built.model, restored.state.params
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        changed = dataclasses.replace(model.config, dtype=dtype)
        model = models.LanguageModel(changed)
    text = config.data.source != "tokens"
    return Opened(model, params, folder, (), text)


def _from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A config from what `config_lib.to_dict` and JSON made of it."""
    hints = typing.get_type_hints(kind)
    fields = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            if hint is models.LanguageModelConfig and "source" in value:
                hint = interop.Config
            value = _from_dict(typing.cast(type, hint), value)
        elif isinstance(value, list):
            value = tuple(value)
        fields[name] = value
    return kind(**fields)
