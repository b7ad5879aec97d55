"""Sums under exponential gates, and the maximum that they are divided by.

A state of true size S exp(m) is kept as the pair (m, S).  A token, a chunk or a
shard that decays it by d <= 0 and adds B exp(i) is the map

    m' = max(d + m, i)        S' = exp(d + m - m') S + exp(i - m') B

whose exponents are never positive, and these maps compose:

    (d2, i2, B2) after (d1, i1, B1) = (d2 + d1, (d2, i2, B2) of (i1, B1))

so that maximum and sums travel in one message.  Derivatives take the maxima in
the exponents as constants: of S exp(m) only S is seen to change.  m itself
has its own derivative, d + m or i, whichever is larger.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seqjax.recurrence import devices
from seqjax.recurrence import maximum
from seqjax.recurrence import transitions
from seqjax.recurrence import two_floats

_still = jax.lax.stop_gradient


class Stabilised(NamedTuple):
    """The map of a state (m, S) above; arrays aligned to the leading axes of S.

    Attributes:
      decay: d, its zeros cutting off what was before.
      low: what `decay.log` has rounded away, or None for nothing.
      peak: i, shaped as m; -inf where nothing is added.
      update: B, a pytree shaped as S, relative to exp(peak).
    """

    decay: transitions.Decay
    low: Any
    peak: jax.Array
    update: Any

    def apply(self, state):
        """(m, S) after the map."""
        m, sums = state
        factors = self._factors(m)
        return factors.m, jax.tree.map(
            lambda s, b: (
                factors.keep.act(s) + transitions.align(factors.write, b) * b
            ),
            sums,
            self.update,
        )

    def compose(self, earlier: "Stabilised") -> "Stabilised":
        """This map after `earlier`."""
        peak, update = self.apply((earlier.peak, earlier.update))
        decay, low = self.decay.compose(earlier.decay), self.low
        later, before = self.decay.log, earlier.decay.log
        if low is not None and later is not None and before is not None:
            low = low + earlier.low + two_floats.two_sum(later, before)[1]
        return Stabilised(decay, low, peak, update)

    def identity(self) -> "Stabilised":
        """The map that changes nothing, in the shapes of this one."""
        zeros = jax.tree.map(jnp.zeros_like, self)
        return zeros._replace(peak=jnp.full_like(self.peak, -jnp.inf))

    def reset(self, where: jax.Array) -> "Stabilised":
        """The map that forgets the state before where `where` is true."""
        return self._replace(decay=self.decay.cut(where))

    def forget(self, state, where: jax.Array):
        """(m, S), empty where `where` is true."""
        m, sums = state
        m = jnp.where(transitions.align(where, m), -jnp.inf, m)
        return m, transitions.forget(sums, where)

    def linear(self, state, cut) -> "Passing":
        """What a small change of the state sees; it was cut off before."""
        del cut
        factors = self._factors(state[0])
        return Passing(
            transitions.Decay(None, ~factors.passes),
            factors.keep,
        )

    def linears(self, maps: "Stabilised", initial, starts) -> "Passing":
        """`linear` of P maps in a row, from the state in front of all."""

        def step(m, shard):
            one, cut = shard
            if cut is not None:
                m = jnp.where(transitions.align(cut, m), -jnp.inf, m)
            return one._factors(m).m, one.linear((m, None), None)

        shards = maps._replace(update=None), starts
        return jax.lax.scan(step, initial[0], shards)[1]

    def back(self, linear: "Passing", bar) -> "Back":
        """The map of cotangents, `bar` being that of the state."""
        return Back(
            transitions.Affine(linear.maximum, bar[0]),
            transitions.Affine(linear.sums, bar[1]),
        )

    def cotangent(self, state, bar) -> "Stabilised":
        """Cotangent of the map where `apply(state)` has cotangent `bar`."""
        (m, sums), (m_bar, bar) = state, bar
        factors = self._factors(m)
        log_bar = factors.keep.cotangent(sums, bar).log
        if self.decay.log is None:
            log_bar = None
        elif log_bar is not None:
            log_bar += jnp.where(factors.passes, m_bar, 0)
        return Stabilised(
            transitions.Decay(log_bar, None),
            None,
            jnp.where(factors.passes, 0, m_bar),
            jax.tree.map(
                lambda b: transitions.align(factors.write, b) * b, bar
            ),
        )

    def kept(self) -> "Stabilised":
        """The map without what only `apply` needs."""
        return self._replace(update=None)

    def _factors(self, m):
        nothing = transitions.vanishes(m)
        if self.decay.zeros is not None:
            nothing |= transitions.align(self.decay.zeros > 0, m)
        total = before = jnp.where(nothing, 0, m)
        error = jnp.zeros_like(before) if self.low is None else self.low
        if self.decay.log is not None:
            total = self.decay.log + before
            error += two_floats.two_sum(self.decay.log, before)[1]
        passes = ~nothing & (total > self.peak)
        after = jnp.where(passes, total, self.peak)
        base = _still(jnp.where(transitions.vanishes(after), 0, after))
        keep = _still((total - base) + error)
        if self.decay.log is not None:
            keep += self.decay.log - _still(self.decay.log)
        return _Factors(
            transitions.Decay(jnp.where(nothing, 0, keep), nothing),
            stable_weight(_still(self.peak), base),
            passes,
            after,
        )


class _Factors(NamedTuple):
    keep: transitions.Decay  # of S
    write: jax.Array  # of B
    passes: jax.Array  # bool: the maximum is the old one, decayed
    m: jax.Array  # the new one


class Passing(NamedTuple):
    """How a small change of (m, S) passes a map.

    Attributes:
      maximum: of m: it does, or not.
      sums: of S, m held.
    """

    maximum: transitions.Decay
    sums: transitions.Decay


class Back(NamedTuple):
    """The map of a pair of cotangents: those of m, and those of S."""

    maximum: transitions.Affine
    sums: transitions.Affine

    def apply(self, bar):
        """The cotangents in front of the map."""
        return self.maximum.apply(bar[0]), self.sums.apply(bar[1])

    def compose(self, earlier: "Back") -> "Back":
        """This map after `earlier`."""
        return Back(
            self.maximum.compose(earlier.maximum),
            self.sums.compose(earlier.sums),
        )

    def identity(self) -> "Back":
        """The map that changes nothing, in the shapes of this one."""
        return Back(self.maximum.identity(), self.sums.identity())


def incoming_stabilised(
    own: Stabilised,
    initial: tuple[jax.Array, Any],
    segment_ids: jax.Array | None,
    axis_name: str,
    exchange: str | None = None,
) -> tuple[jax.Array, Any]:
    """(m, S) that enters this device's shard of the sequence.

    Call inside `jax.shard_map`; all inputs must vary over `axis_name`.

    Args:
      own: the map of the local shard.
      initial: (m, S) in front of the whole sequence, m -inf where nothing is.
      segment_ids: int32 [B, T/P] of the local shard, or None.
      axis_name: mesh axis along which time is sharded, device 0 first.
      exchange: as of `devices.incoming_state`.

    Returns:
      (m, S); (-inf, 0) where a document starts with this shard's first real
      token.
    """
    if segment_ids is not None:
        own = own.reset(jnp.zeros_like(segment_ids[:, 0], bool))
    own = own._replace(decay=own.decay.flagged())
    return devices.incoming(own, initial, segment_ids, axis_name, exchange)


def running_maxima(
    maps: maximum.MaxPlus, initial: jax.Array, starts: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """m_{t-1} and m_t of T tokens.

    Args:
      maps: of `maximum.prefix_maxima`, arrays [B, T, ...]; d is -inf from a
        document's start on.
      initial: [B, ...], m in front of them.
      starts: bool [B, T], where a document starts, or None.

    Returns:
      (before, m) [B, T, ...] each; before is -inf where a document starts.
    """
    m = maps.apply(initial[:, None])
    before = jnp.concatenate([initial[:, None], m[:, :-1]], axis=1)
    if starts is not None:
        before = jnp.where(transitions.align(starts, m), -jnp.inf, before)
    return before, m


def log_keep(
    log_decay: jax.Array | None, before: jax.Array, m: jax.Array
) -> jax.Array:
    """Log decay <= 0 of sums divided by exp(m): log_decay + before - m.

    before - m is taken as two floats: maxima of 1e3 round to 3e-5, and what
    remains of them here is an exponent.  It is a constant.

    Args:
      log_decay: natural logarithm of the decay itself, or None for 0.
      before: the maximum in front of each token, -inf where nothing is kept.
      m: the maximum behind it.

    Returns:
      Shaped as m; -inf where nothing is kept.
    """
    before, m = _still((before, m))
    nothing = transitions.vanishes(before)
    if log_decay is None:
        log_decay = jnp.zeros_like(before)
    nothing |= transitions.vanishes(log_decay)
    # Where nothing is kept the other numbers do not matter.
    log_decay, before, m = (
        jnp.where(nothing, 0, x) for x in (log_decay, before, m)
    )
    step, error = two_floats.two_sum(before, -m)
    return jnp.where(nothing, -jnp.inf, (log_decay + step) + error)


def stable_weight(gate: jax.Array, m: jax.Array) -> jax.Array:
    """exp(gate - m), m a constant; 0 where `gate` is -inf."""
    nothing = transitions.vanishes(gate)
    gate, m = (jnp.where(nothing, 0, x) for x in (gate, _still(m)))
    return jnp.where(nothing, 0, jnp.exp(gate - m))


def moved(m: jax.Array) -> jax.Array:
    """0 that differentiates like m, for what is S exp(m); 0 where m is -inf."""
    difference = m - _still(m)
    return jnp.where(transitions.vanishes(m), 0, difference)
