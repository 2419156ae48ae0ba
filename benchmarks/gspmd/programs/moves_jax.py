"""The programs of `moves.py` in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax_types import Arrays, Hold


def make(p: Arrays, inputs: Arrays, at: Hold, kind: str, d: int, f: int) -> Arrays:
    y = KINDS[kind](jnp.tanh(inputs["x"] @ p["w"]))
    return {"loss": jnp.square(y).mean(), "y": y}


def causal(h: Array) -> Array:
    padded = jnp.pad(h, ((0, 0), (3, 0), (0, 0)))
    return sum(padded[:, i : i + h.shape[1]] * (i + 1) for i in range(4))


def halves(h: Array) -> Array:
    gate, up = jnp.split(h, 2, axis=-1)
    return jax.nn.silu(gate) * up


def rotated(h: Array) -> Array:
    one, other = jnp.split(h, 2, axis=-1)
    return jnp.concatenate([-other, one], -1) + h


def apart(h: Array) -> Array:
    b, s, d = h.shape
    return h.reshape(b, s // 4, 4, d).mean(2)


def normalized(h: Array) -> Array:
    return h / jnp.sqrt(jnp.square(h).sum((1, 2), keepdims=True))


def masked(h: Array) -> Array:
    s = h.shape[1]
    return jnp.einsum("qs,bsd->bqd", jnp.tril(jnp.ones((s, s))) / s, h)


KINDS = {
    "flip": lambda h: h[:, ::-1],
    "far_shift": lambda h: jnp.roll(h, 21, 1),
    "causal": causal,
    "halves": halves,
    "rotated": rotated,
    "pairs": lambda h: h[..., 0::2] * h[..., 1::2],
    "stacked": lambda h: jnp.stack([h, jnp.square(h)], 1),
    "flat": lambda h: h.reshape(-1, h.shape[-1]),
    "apart": apart,
    "doubled": lambda h: jnp.repeat(h, 2, 1),
    "differences": lambda h: jnp.square(h[:, :, None] - h[:, None]).mean(-1),
    "ends": lambda h: jnp.concatenate([h[:, :1], h[:, -1:]], 1),
    "first_half": lambda h: h[:, : h.shape[1] // 2],
    "normalized": normalized,
    "both_softmax": lambda h: jax.nn.softmax(h.reshape(h.shape[0], -1), -1).reshape(h.shape),
    "masked": masked,
    "scores": lambda h: jnp.einsum("bsd,btd->bst", h, h),
}
