"""The train step and the evaluation step: pure functions of their arguments.

The loss is the cross-entropy in nats, averaged over the weighted tokens of
the global batch.  Microbatches are summed with the weights of their tokens,
so accumulation equals the full batch to rounding; a mean of means would not
where rows hold different numbers of tokens.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from seqjax import models
from seqjax.recurrence import varying
from seqjax.training import optimizer as optimizer_lib
from seqjax.training import over_mesh
from seqjax.training import state as state_lib

Batch = dict[str, jax.Array]
# What the model and the loss read; "positions" stays on the host.
KEYS = ("inputs", "targets", "weights", "segment_ids")

# How often each function was traced in this process, by name.
traces: Counter[str] = Counter()


def cross_entropy_sum(
    logits: jax.Array, targets: jax.Array, weights: jax.Array
) -> jax.Array:
    """Sum of weighted cross-entropies in nats, float32 [].

    logits [B, T, vocab] any float, targets int32 [B, T], weights float32
    [B, T].
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits.astype(jnp.float32), targets
    )
    # A token without weight may carry any logits, also infinite ones.
    return jnp.sum(jnp.where(weights > 0, losses, 0.0) * weights)


def split(batch: Batch, parts: int) -> Batch:
    """Cuts [B, ...] into microbatches [parts, B/parts, ...].

    Microbatch m takes the rows m, m+parts, ..., so that each device finds its
    share of every microbatch among its own rows.
    """

    def one(leaf: jax.Array) -> jax.Array:
        rows = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
        return jnp.swapaxes(rows, 0, 1)

    return jax.tree.map(one, batch)


def _make_loss_and_gradients(
    model: models.LanguageModel, config: Any, layout: over_mesh.Layout | None
) -> Callable[..., tuple[jax.Array, Any]]:
    """Summed loss over the tokens of all devices, of this device's batch."""
    whole = over_mesh.whole(layout)

    def loss_fn(
        params: Any, part: Batch, tokens: jax.Array, key: jax.Array
    ) -> jax.Array:
        logits, _ = model.apply(
            whole(optimizer_lib.freeze(config.optimizer, params)),
            part["inputs"],
            segment_ids=part["segment_ids"],
            rngs={"dropout": key},
        )
        total = cross_entropy_sum(logits, part["targets"], part["weights"])
        return total / jnp.maximum(tokens, 1.0)

    value_and_grad = jax.value_and_grad(loss_fn)

    def loss_and_gradients(
        params: Any, batch: Batch, tokens: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, Any]:
        def of_part(part: Batch, index: jax.Array) -> Any:
            return value_and_grad(
                params, part, tokens, jax.random.fold_in(key, index)
            )

        if config.accumulation == 1:
            return of_part(batch, jnp.int32(0))

        def add(carry: Any, item: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, of_part(*item)), None

        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
        zeros = varying.match_varying(zeros, varying.varying_axes(params))
        parts = split(batch, config.accumulation)
        found, _ = jax.lax.scan(
            add, zeros, (parts, jnp.arange(config.accumulation))
        )
        return found

    return loss_and_gradients


def make_train_step(
    model: models.LanguageModel,
    optimizer: optax.GradientTransformation,
    config: Any,
    layout: over_mesh.Layout | None = None,
) -> Callable[
    [state_lib.TrainState, Batch],
    tuple[state_lib.TrainState, dict[str, jax.Array]],
]:
    """``step(state, batch) -> (state, metrics)`` for a TrainConfig.

    With a layout the model must be one that lies across its mesh.

    metrics are scalars: loss (nats a token), grad_norm (before clipping),
    learning_rate, tokens (that carry weight), finite (bool), skipped
    (cumulative).  An update that is not finite is never applied; whether the
    run goes on is the caller's policy.
    """

    loss_and_gradients = over_mesh.sums_and_gradients(
        _make_loss_and_gradients(model, config, layout), layout
    )

    def train_step(
        state: state_lib.TrainState, batch: Batch
    ) -> tuple[state_lib.TrainState, dict[str, jax.Array]]:
        traces["train_step"] += 1
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        tokens = jnp.sum(batch["weights"])

        loss, grads = loss_and_gradients(state.params, batch, tokens, key)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        rate = optimizer_lib.learning_rate(
            config.optimizer, state.step, config.steps
        )
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params
        )
        params = jax.tree.map(
            lambda param, update: param - rate * update, state.params, updates
        )
        # A finite gradient may still be blown up on its way to the parameters,
        # and its square in the second moment.
        for leaf in jax.tree.leaves((params, opt_state)):
            finite &= jnp.all(jnp.isfinite(leaf))

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

        skipped = state.skipped + jnp.where(finite, 0, 1)
        new_state = state_lib.TrainState(
            step=state.step + 1,
            skipped=skipped,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "tokens": tokens,
            "finite": finite,
            "skipped": skipped,
        }
        return new_state, metrics

    return train_step


def make_eval_step(
    model: models.LanguageModel, layout: over_mesh.Layout | None = None
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """``step(params, batch)``: sums of nats and of tokens over a batch."""
    whole = over_mesh.whole(layout)

    def nats_and_tokens(params: Any, batch: Batch) -> dict[str, jax.Array]:
        logits, _ = model.apply(
            whole(params), batch["inputs"], segment_ids=batch["segment_ids"]
        )
        return {
            "nats": cross_entropy_sum(
                logits, batch["targets"], batch["weights"]
            ),
            "tokens": jnp.sum(batch["weights"]),
        }

    summed = over_mesh.sums(nats_and_tokens, layout)

    def eval_step(params: Any, batch: Batch) -> dict[str, jax.Array]:
        traces["eval_step"] += 1
        return summed(params, batch)

    return eval_step
