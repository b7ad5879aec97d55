"""The linear maps into heads and out of them."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from seqjax.layers import initializers
from seqjax.layers import mixer
from seqjax.layers import norms

Initializer = nn.initializers.Initializer

_LECUN = nn.initializers.lecun_normal()


def to_heads(
    x: jax.Array,
    heads: int,
    features: int,
    dtype: jnp.dtype,
    name: str,
    kernel_init: Initializer = _LECUN,
    *,
    use_bias: bool = False,
) -> jax.Array:
    """Projects x [B, T, D] to [B, T, heads, features]; call it in a module."""
    return nn.DenseGeneral(
        (heads, features),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )(x)


def from_heads(
    o: jax.Array,
    width: int,
    dtype: jnp.dtype,
    residual_scale: float,
    kernel_init: Initializer = _LECUN,
    *,
    use_bias: bool = False,
) -> jax.Array:
    """Projects o [B, T, H, V] to [B, T, width]; call it in a module.

    The initial kernel is multiplied by `residual_scale`.
    """
    return nn.DenseGeneral(
        width,
        axis=(-2, -1),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=initializers.scaled(kernel_init, residual_scale),
        name="out",
    )(o)


class Grouped(nn.Module):
    """A linear map for each group of channels; one of [in, out] for one group.

    Attributes:
      features: out, of each group.
      dtype: of the computation; parameters are float32.
      kernel_init: of each group's kernel.
      bias_init: None for no bias.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    kernel_init: Initializer = _LECUN
    bias_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., G, in] to [..., G, out]."""
        groups, inputs = x.shape[-2:]
        lead = () if groups == 1 else (groups,)
        shape = *lead, inputs, self.features
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        kernel = kernel.reshape(groups, inputs, self.features)
        y = jnp.einsum(
            "...gi,gio->...go", x.astype(self.dtype), kernel.astype(self.dtype)
        )
        if self.bias_init is not None:
            shape = *lead, self.features
            bias = self.param("bias", self.bias_init, shape, jnp.float32)
            bias = bias.reshape(groups, self.features).astype(y.dtype)
            y = y + norms.expand(bias, y)
        return y


def read_out(
    layer: mixer.Mixer,
    o: jax.Array,
    x: jax.Array,
    *,
    gated: bool = True,
    gate: jax.Array | None = None,
    activation: str = "silu",
    full_width: bool = False,
    kernel_init: Initializer = _LECUN,
) -> jax.Array:
    """W_o (rms(o) * act(W_g x)); call it in a module, with that module.

    Args:
      layer: the module, for its eps, dtype and residual_scale.
      o: [B, T, H, V].
      x: [B, T, D].
      gated: False for W_o rms(o).
      gate: [B, T, H * V], in the place of W_g x.
      activation: of the gate, "silu" or "sigmoid".
      full_width: whether the norm runs over all heads together.
      kernel_init: of W_g and W_o.

    Returns:
      [B, T, D] in the layer's dtype.
    """
    heads, dim = o.shape[2:]
    shape = (*x.shape[:2], heads * dim) if full_width else o.shape
    if gated:
        if gate is None:
            gate = to_heads(x, heads, dim, layer.dtype, "gate", kernel_init)
        norm = norms.GatedRMSNorm(activation, eps=layer.eps, name="norm")
        o = norm(o.reshape(shape), gate.reshape(shape))
    else:
        o = norms.RMSNorm(layer.eps, name="norm")(o.reshape(shape))
    return from_heads(
        o.reshape(*x.shape[:2], heads, dim),
        x.shape[-1],
        layer.dtype,
        layer.residual_scale,
        kernel_init,
    )
