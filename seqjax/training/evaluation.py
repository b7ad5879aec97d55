"""Validation: the token-weighted loss over a finite set of batches."""

from collections.abc import Callable, Iterable
import math
from typing import Any

from seqjax.training import background
from seqjax.training import flags


def evaluate(
    eval_step: Callable[[Any, Any], dict[str, Any]],
    params: Any,
    batches: Iterable[Any],
    put: Callable[[Any], Any],
    stop: Callable[[], bool],
) -> dict[str, float]:
    """Nats and bits for each weighted token over all batches.

    Args:
      eval_step: see ``step.make_eval_step``.
      params: the model's variables.
      batches: finite, the same at every call.
      put: moves a host batch to the devices.
      stop: polled between batches; once true, PreemptedError.

    Returns:
      validation_loss (nats a token), validation_bits_per_token (a token is a
      byte where the text is read as bytes) and validation_tokens.
    """
    nats, tokens = 0.0, 0.0
    pending = None
    for batch in batches:
        if stop():
            raise background.PreemptedError
        launched = eval_step(params, put(batch))
        if pending is not None:
            nats += float(pending["nats"])
            tokens += float(pending["tokens"])
        pending = launched
    if pending is not None:
        nats += float(pending["nats"])
        tokens += float(pending["tokens"])
    if tokens == 0:
        raise flags.ConfigError(
            "the validation set holds no token with a next token to predict; "
            "raise data.validation_fraction or give a longer text"
        )
    loss = nats / tokens
    return {
        "validation_loss": loss,
        "validation_bits_per_token": loss / math.log(2),
        "validation_tokens": int(tokens),
    }
