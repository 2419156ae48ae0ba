"""The programs of `dense.py` in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax_types import Arrays, Hold


def linear(p: Arrays, name: str, x: Array) -> Array:
    """A linear layer with a bias; weights as PyTorch has them, rows are outputs."""
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """The mean over all rows."""
    rows = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return (rows - picked).mean()


def layer_norm(p: Arrays, name: str, x: Array) -> Array:
    """Over the last dim."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def mlp(p: Arrays, inputs: Arrays, at: Hold, d: int, f: int, layers: int = 1) -> Arrays:
    x = inputs["x"]
    for i in range(layers):
        h = at(f"up.{i}.out", linear(p, f"up.{i}", x))
        x = linear(p, f"down.{i}", jax.nn.gelu(h, approximate=True))
    return {"loss": jnp.square(x).mean(), "y": x}


def stacked(p: Arrays, inputs: Arrays, at: Hold, layers: int, d: int, f: int) -> Arrays:
    def layer(x: Array, weights: tuple[Array, Array]) -> tuple[Array, None]:
        up, down = weights
        return x + jnp.tanh(x @ up) @ down, None

    x, _ = jax.lax.scan(layer, inputs["x"], (p["up"], p["down"]))
    return {"loss": jnp.square(x).mean(), "y": x}


def tied(p: Arrays, inputs: Arrays, at: Hold, v: int, d: int) -> Arrays:
    h = jnp.tanh(p["table"][inputs["ids"]] @ p["w"])
    return {"loss": cross_entropy(h @ p["table"].T, inputs["labels"])}


def z_loss(p: Arrays, inputs: Arrays, at: Hold, d: int, v: int) -> Arrays:
    logits = inputs["x"] @ p["head.weight"].T
    z = jnp.square(jax.nn.logsumexp(logits, axis=-1)).mean()
    return {"loss": cross_entropy(logits, inputs["labels"]) + 1e-3 * z}


def normed(p: Arrays, inputs: Arrays, at: Hold, d: int) -> Arrays:
    x = inputs["x"]
    y = layer_norm(p, "second", jnp.tanh(layer_norm(p, "first", x) @ p["w"]))
    return {"loss": (y * x).mean(), "y": y}


def softmax(p: Arrays, inputs: Arrays, at: Hold, d: int, f: int) -> Arrays:
    x = inputs["x"]
    y = jax.nn.softmax(x @ p["w"], axis=-1) @ p["values"]
    return {"loss": (y * x).mean(), "y": y}


def sums(p: Arrays, inputs: Arrays, at: Hold, d: int) -> Arrays:
    x = inputs["x"]
    y = jnp.cumsum(jnp.tanh(x @ p["w"]), axis=1)
    return {"loss": (y * x).mean(), "y": y}


def traded(p: Arrays, inputs: Arrays, at: Hold, d: int) -> Arrays:
    y = jnp.tanh(inputs["x"] @ p["w"]).swapaxes(0, 1)
    return {"loss": jnp.square(y).mean(), "y": y}


def joined(p: Arrays, inputs: Arrays, at: Hold, d: int, f: int) -> Arrays:
    x = inputs["x"]
    y = jnp.concatenate([x @ p["w"], jnp.sin(x @ p["u"])], -1)
    y = jnp.tanh(y) @ p["down"]
    return {"loss": (y * x).mean(), "y": y}


def heads(p: Arrays, inputs: Arrays, at: Hold, d: int, heads: int) -> Arrays:
    x = inputs["x"]
    b, s, d = x.shape
    h = (x @ p["w"]).reshape(b, s, heads, d // heads)
    h = jnp.tanh(h * p["scale"][:, None]).reshape(b * s, d)
    return {"loss": jnp.square(h).mean(), "y": h}


def towers(p: Arrays, inputs: Arrays, at: Hold, d: int, f: int) -> Arrays:
    def tower(x: Array, w: Array) -> Array:
        h = jnp.tanh(x @ w)
        return h / jnp.maximum(jnp.sqrt(jnp.square(h).sum(-1, keepdims=True)), 1e-12)

    a, b = tower(inputs["x"], p["left"]), tower(inputs["y"], p["right"])
    scores = a @ b.T
    return {"loss": (jax.nn.logsumexp(scores, axis=-1) - (a * b).sum(-1)).mean()}


def largest(p: Arrays, inputs: Arrays, at: Hold, d: int) -> Arrays:
    h = jnp.tanh(inputs["x"] @ p["w"])
    steps = jnp.square(h[:, 1:] - h[:, :-1]).mean()
    return {"loss": h.max(1).mean() + steps}
