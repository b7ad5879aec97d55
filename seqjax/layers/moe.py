"""Mixture of experts: each token passes k of E small MLPs (2101.03961).

    s = softmax(W_r x) or sigmoid(W_r x),   y = sum_{e in top-k(s)} w_e MLP_e(x)

Token choice without capacity: no token is dropped, and a token's result does
not depend on others.  w are the scores of the chosen, over their sum where
`renormalize`.  Mixtral and Qwen: softmax; DeepSeek-V3 (2412.19437), Kimi and
Nemotron: sigmoid, a correction that counts for the choice alone, and a choice
inside the best groups of experts.  A shared expert serves every token.

Cost 6 * D * width * k FLOPs a token in the "grouped" form, whose rows are
sorted by expert for one ragged product; E / k times that in the "dense" form,
which runs every expert on every token, one after the other.  Weak at: small
batches (all experts are read for a few tokens); no loss here balances the
experts, and the correction is a constant that only checkpoints bring.
"""

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import activations
from seqjax.layers import channels
from seqjax.layers import fields
from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms
from seqjax.layers import routing
from seqjax.layers import swiglu

Scores = Literal["softmax", "sigmoid"]
Form = Literal["dense", "grouped"]


class Stacked(nn.Module):
    """The kernels of all experts, [E, in, out], at first 1/sqrt(in) each."""

    experts: int
    inputs: int
    outputs: int
    factor: float = 1.0

    @nn.compact
    def __call__(self) -> jax.Array:
        """The kernels, float32."""
        init = nn.initializers.lecun_normal(batch_axis=0)
        shape = self.experts, self.inputs, self.outputs
        scaled = initializers.scaled(init, self.factor)
        return self.param("kernel", scaled, shape, jnp.float32)


class MoE(nn.Module):
    """Mixture of experts; the router is float32.

    Attributes:
      experts: E.
      active: k, experts of a token.
      width: hidden width of an expert.
      shared_width: of the shared expert; None for none.
      shared_gate: whether sigmoid(w . x) multiplies the shared expert.
      activation: see `seqjax.layers.activations`.
      gated: whether experts have a gate (SwiGLU).
      scores: "softmax" or "sigmoid".
      renormalize: whether the weights of a token sum to 1.
      correction: whether there is a parameter [E] that is added to the scores
        for the choice alone; it gets no gradient.
      groups: of neighbouring experts.
      active_groups: how many of them a token may choose from.
      factor: on the weights.
      form: "dense", "grouped", or None: "grouped" but on CPU, where a ragged
        product runs every expert on every row.
      dtype: of the computation; parameters are float32.
      residual_scale: factor on the initial output projections.
    """

    experts: int
    active: int
    width: int
    shared_width: int | None = None
    shared_gate: bool = False
    activation: str = "silu"
    gated: bool = True
    scores: str = "softmax"
    renormalize: bool = True
    correction: bool = False
    groups: int = 1
    active_groups: int = 1
    factor: float = 1.0
    form: str | None = None
    dtype: jnp.dtype = jnp.float32
    residual_scale: float = 1.0

    @nn.nowrap
    def init_state(self, batch: int) -> None:
        """None: it looks at one token."""
        del batch

    @nn.compact
    def __call__(
        self, x: jax.Array, state: None = None, segment_ids: Any = None
    ) -> tuple[jax.Array, None]:
        """Maps x [B, T, D] to y [B, T, D] in `dtype`; there is no state."""
        del segment_ids
        flat = x.reshape(-1, x.shape[-1])
        weights, index = self._choice(flat)
        width, features = self.width, x.shape[-1]
        kernels = {
            name: Stacked(self.experts, *sizes, name=name)().astype(self.dtype)
            for name, sizes in {
                "gate": (features, width),
                "up": (features, width),
                "down": (width, features, self.residual_scale),
            }.items()
            if self.gated or name != "gate"
        }
        form = self.form
        if form is None:
            form = "dense" if jax.default_backend() == "cpu" else "grouped"
        through = {"dense": routing.dense, "grouped": routing.grouped}[form]
        act = activations.named(self.activation)
        y = through(act, flat.astype(self.dtype), weights, index, kernels)
        y = y.reshape(x.shape).astype(self.dtype)
        if self.shared_width is not None:
            y = y + self._shared(x)
        return y, state

    def _choice(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Weights and indices of each token's experts, [N, k] each."""
        wide = norms.wide(self.dtype)
        logits = nn.Dense(
            self.experts, use_bias=False, dtype=wide, name="router"
        )(x)
        scored = {"softmax": jax.nn.softmax, "sigmoid": jax.nn.sigmoid}
        correction = None
        if self.correction:
            correction = self.param(
                "correction",
                nn.initializers.zeros,
                (self.experts,),
                jnp.float32,
            )
        weights, index = routing.route(
            scored[self.scores](logits),
            self.active,
            correction=correction,
            groups=self.groups,
            active_groups=self.active_groups,
        )
        if self.renormalize:
            total = jnp.sum(weights, axis=-1, keepdims=True)
            # Sigmoids may all be 0.
            weights = weights / (total + 1e-20)
        return weights * self.factor, index

    def _shared(self, x: jax.Array) -> jax.Array:
        y = swiglu.SwiGLU(
            self.shared_width or self.width,
            self.dtype,
            self.residual_scale,
            self.activation,
            self.gated,
            name="shared",
        )(x)
        if not self.shared_gate:
            return y
        gate = nn.Dense(
            1, use_bias=False, dtype=self.dtype, name="shared_gate"
        )(x)
        return y * nn.sigmoid(gate)


@dataclasses.dataclass(unsafe_hash=True)
class MoEOptions(channels.ChannelOptions):
    """Mixture of experts in a model's config; `width` is that of an expert.

    Attributes:
      experts: E.
      active: k, experts of a token.
      shared_width: hidden width of the shared expert; None for none.
      shared_gate: whether sigmoid(w . x) multiplies it.
      activation: of all experts.
      gated: whether they have a gate, as SwiGLU.
      scores: "softmax" or "sigmoid".
      renormalize: whether the weights of a token sum to 1.
      correction: whether a parameter is added to the scores for the choice.
      groups: of neighbouring experts.
      active_groups: how many of them a token may choose from.
      factor: on the weights.
      form: "dense", "grouped", or None for the better one.
    """

    experts: int = 8
    active: int = 2
    shared_width: int | None = None
    shared_gate: bool = False
    activation: activations.Activation = "silu"
    gated: bool = True
    scores: Scores = "softmax"
    renormalize: bool = True
    correction: bool = False
    groups: int = 1
    active_groups: int = 1
    factor: float = 1.0
    form: Form | None = None

    def check(self, host: mixer.Host, path: str) -> None:
        """Raises ValueError naming the field by its path."""
        fields.check(self, path)
        if self.experts % self.groups or self.active_groups > self.groups:
            raise ValueError(
                f"{path}groups must divide {path}experts={self.experts} and "
                f"be at least {path}active_groups={self.active_groups}, got "
                f"{self.groups}"
            )
        most = self.experts // self.groups * self.active_groups
        if self.active > most:
            raise ValueError(
                f"{path}active must be at most {most}, the experts of "
                f"{self.active_groups} of {self.groups} groups of "
                f"{self.experts}, got {self.active}"
            )
        if self.shared_gate and self.shared_width is None:
            raise ValueError(
                f"{path}shared_gate=True has nothing to act on; set "
                f"{path}shared_width"
            )

    def build(self, host: mixer.Host, width: int, **module: Any) -> MoE:
        """The layer."""
        return MoE(
            self.experts,
            self.active,
            self.width or width,
            self.shared_width,
            self.shared_gate,
            self.activation,
            self.gated,
            self.scores,
            self.renormalize,
            self.correction,
            self.groups,
            self.active_groups,
            self.factor,
            self.form,
            host.dtype,
            host.residual_scale,
            **module,
        )

    def idle(self, host: mixer.Host, width: int) -> int:
        """The kernels of the experts that a token does not pass."""
        one = (3 if self.gated else 2) * host.width * (self.width or width)
        return (self.experts - self.active) * one
