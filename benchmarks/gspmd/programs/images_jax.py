"""The programs of `images.py` in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax_types import Arrays, Hold


def conv2d(x: Array, w: Array, stride: int = 1, padding: int = 0) -> Array:
    """Images `n c h w` and kernels `o i kh kw`, as PyTorch has them."""
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NCHW", "OIHW", "NCHW")
    )


def by_channels(x: Array, w: Array) -> Array:
    """A convolution of 1 by 1 as a product, for which XLA sends less."""
    return jnp.einsum("oi,nihw->nohw", w[:, :, 0, 0], x)


def conv(p: Arrays, inputs: Arrays, at: Hold, c: int, stride: int = 1, padding: int = 1) -> Arrays:
    y = jax.nn.relu(conv2d(inputs["x"], p["a.weight"], 1, padding))
    y = conv2d(y, p["b.weight"], stride, padding)
    return {"loss": jnp.square(y).mean()}


def pool(p: Arrays, inputs: Arrays, at: Hold, c: int) -> Arrays:
    y = by_channels(inputs["x"], p["a.weight"])
    around = ((0, 0), (0, 0), (1, 1), (1, 1))
    y = jax.lax.reduce_window(y, -jnp.inf, jax.lax.max, (1, 1, 3, 3), (1, 1, 1, 1), around)
    y = jax.lax.reduce_window(y, 0.0, jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID") / 4
    return {"loss": jnp.square(y).mean()}


def groupnorm(p: Arrays, inputs: Arrays, at: Hold, c: int, groups: int) -> Arrays:
    x = inputs["x"]
    n, c, h, w = x.shape
    y = by_channels(x, p["conv.weight"]).reshape(n, groups, -1)
    mean = y.mean(-1, keepdims=True)
    var = jnp.square(y - mean).mean(-1, keepdims=True)
    y = ((y - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(n, c, h, w) * p["w"][:, None, None]
    return {"loss": (jax.nn.relu(y) * x).mean()}


def batchnorm(p: Arrays, inputs: Arrays, at: Hold, c: int) -> Arrays:
    x = inputs["x"]
    y = conv2d(x, p["conv.weight"], 1, 1)
    mean = y.mean((0, 2, 3), keepdims=True)
    var = jnp.square(y - mean).mean((0, 2, 3), keepdims=True)
    y = (y - mean) * jax.lax.rsqrt(var + 1e-5)
    y = y * p["norm.weight"][:, None, None] + p["norm.bias"][:, None, None]
    return {"loss": (jax.nn.relu(y) * x).mean()}


def roll(p: Arrays, inputs: Arrays, at: Hold, c: int) -> Arrays:
    x = inputs["x"]
    y = jnp.roll(jnp.tanh(x @ p["a.weight"].T), (2, 2), (1, 2))
    return {"loss": (y * x).mean(), "y": y}


def padded(p: Arrays, inputs: Arrays, at: Hold, c: int) -> Arrays:
    x = inputs["x"]
    y = jnp.pad(jnp.tanh(x @ p["a.weight"].T), ((0, 0), (1, 1), (0, 0)))
    y = (y[:, :-2] + y[:, 1:-1] + y[:, 2:]) / 3
    return {"loss": (y * x).mean(), "y": y}
