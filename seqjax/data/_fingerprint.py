"""What decides the content and order of batches, as comparable facts."""

from typing import Any

from seqjax.data import _config
from seqjax.data import _corpus
from seqjax.data import _errors

# Raised whenever the same configuration and text give other batches.
PIPELINE_VERSION = 1


def fingerprint(
    config: _config.DataConfig, *, corpus: _corpus.Corpus | None = None
) -> dict[str, Any]:
    """Facts, plain JSON values, that two runs on the same batches share.

    The number of processes and of workers is not among them: it changes
    neither the batches nor their order. Nor is where the files lie.

    Args:
      config: the data configuration.
      corpus: what `corpus(config)` gave, to spare reading it again.

    Raises:
      DataError: see `corpus`.
    """
    if corpus is None:
        corpus = _corpus.corpus(config)
    train_content, validation_content = corpus.digests
    return {
        "pipeline_version": PIPELINE_VERSION,
        "tokenizer": "none" if config.source == "tokens" else "bytes",
        "vocab_size": config.vocab_size,
        "sequence_length": config.sequence_length,
        "batch_size": config.batch_size,
        "pack": config.pack,
        "seed": config.seed,
        "train_documents": len(corpus.train),
        "train_tokens": corpus.train.tokens,
        "train_content": train_content,
        "validation_documents": len(corpus.validation),
        "validation_tokens": corpus.validation.tokens,
        "validation_content": validation_content,
    }


def check_fingerprint(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to go on when two fingerprints differ.

    Raises:
      DataError: names every fact that differs, with the old and new value.
    """
    names = [*current, *(name for name in saved if name not in current)]
    changes = [
        f"{name} was {_show(saved, name)}, is {_show(current, name)}"
        for name in names
        if saved.get(name) != current.get(name)
    ]
    if changes:
        raise _errors.DataError(
            "the saved data position belongs to other data: "
            + "; ".join(changes)
            + ". Restore the text and settings of that run, or begin another "
            "run from its first batch"
        )


def _show(facts: dict[str, Any], name: str) -> str:
    value = facts.get(name, "absent")
    return value[:12] if name.endswith("_content") else repr(value)
