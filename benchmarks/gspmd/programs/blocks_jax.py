"""The programs of `blocks.py` in JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax_types import Arrays, Hold


def norm(p: Arrays, name: str, x: Array) -> Array:
    """Layer norm over the last dim."""
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(var + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]


def attend(p: Arrays, name: str, x: Array, heads: int, kv: int) -> Array:
    """Causal attention."""
    b, s, d = x.shape
    size = d // heads
    q = (x @ p[f"{name}.q.weight"].T).reshape(b, s, kv, heads // kv, size)
    k = (x @ p[f"{name}.k.weight"].T).reshape(b, s, kv, size)
    v = (x @ p[f"{name}.v.weight"].T).reshape(b, s, kv, size)
    scores = jnp.einsum("bqkgd,btkd->bkgqt", q, k) * size**-0.5
    mask = jnp.tril(jnp.ones((s, s), bool))
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e9), axis=-1)
    out = jnp.einsum("bkgqt,btkd->bqkgd", weights, v)
    return out.reshape(b, s, d) @ p[f"{name}.o.weight"].T


def attention(p: Arrays, inputs: Arrays, at: Hold, d: int, heads: int, kv: int) -> Arrays:
    x = inputs["x"]
    y = x + attend(p, "attn", x, heads, kv)
    return {"loss": jnp.square(y).mean(), "y": y}


def lm(
    p: Arrays, inputs: Arrays, at: Hold, v: int, d: int, f: int, heads: int, layers: int
) -> Arrays:
    x = at("embed.out", p["embed.weight"][inputs["ids"]])
    for i in range(layers):
        name = f"blocks.{i}"
        x = x + attend(p, f"{name}.attn", norm(p, f"{name}.norm1", x), heads, heads)
        h = norm(p, f"{name}.norm2", x) @ p[f"{name}.up.weight"].T + p[f"{name}.up.bias"]
        h = jax.nn.gelu(h, approximate=True)
        x = at(f"{name}.out", x + h @ p[f"{name}.down.weight"].T + p[f"{name}.down.bias"])
    logits = norm(p, "norm", x) @ p["head.weight"].T
    rows = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, inputs["labels"][..., None], axis=-1)[..., 0]
    return {"loss": (rows - picked).mean()}


def moe(p: Arrays, inputs: Arrays, at: Hold, d: int, f: int, e: int, c: int) -> Arrays:
    x = inputs["x"]
    probs = jax.nn.softmax(jnp.einsum("gsd,de->gse", x, p["gate"]), axis=-1)
    chosen = jax.nn.one_hot(probs.argmax(-1), e, dtype=jnp.int32)
    place = jnp.cumsum(chosen, axis=1) * chosen - 1
    kept = chosen * (place < c)
    slots = jax.nn.one_hot(jnp.clip(place, 0, c - 1), c, dtype=x.dtype)
    dispatch = slots * kept[..., None].astype(x.dtype)
    combine = dispatch * probs[..., None]
    inside = at("inside.out", jnp.einsum("gsec,gsd->egcd", dispatch, x))
    h = jax.nn.relu(jnp.einsum("egcd,edf->egcf", inside, p["w1"]))
    out = jnp.einsum("egcf,efd->egcd", h, p["w2"])
    y = jnp.einsum("gsec,egcd->gsd", combine, out)
    return {"loss": jnp.square(y).mean(), "y": y}
