"""The paper's U-Net in JAX, layer for layer from `UNet.plan`, as a function of our parameters by their names.

Arrays lie as ours do, (N, H, W, C), filters (3, 3, C, D): weights and gradients need no turning.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ddpm_ref.nn.plan import Piece, UNetConfig
from ddpm_ref.nn.unet import UNet

Weights = dict[str, jax.Array]


def conv(w: Weights, layer: str, x: jax.Array, stride: int = 1) -> jax.Array:
    """3x3, padded as TensorFlow's "SAME"."""
    y = lax.conv_general_dilated(
        x, w[f"{layer}/W"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y + w[f"{layer}/b"]


def dense(w: Weights, layer: str, x: jax.Array) -> jax.Array:
    """1x1."""
    return x @ w[f"{layer}/W"] + w[f"{layer}/b"]


def norm(w: Weights, layer: str, x: jax.Array, groups: int) -> jax.Array:
    """GroupNorm, ε = 1e-6."""
    n, h, width, c = x.shape
    g = x.reshape(n, h * width, groups, c // groups)
    mean = g.mean(axis=(1, 3), keepdims=True)
    var = jnp.square(g - mean).mean(axis=(1, 3), keepdims=True)
    g = (g - mean) * lax.rsqrt(var + 1e-6)
    return g.reshape(x.shape) * w[f"{layer}/gamma"] + w[f"{layer}/beta"]


def block(w: Weights, name: str, x: jax.Array, temb: jax.Array, cfg: UNetConfig, key: Any) -> jax.Array:
    """A residual block. key: of its dropout, or None."""
    h = conv(w, f"{name}/conv1", jax.nn.silu(norm(w, f"{name}/norm1", x, cfg.groups)))
    h = h + dense(w, f"{name}/temb_proj", temb)[:, None, None, :]
    h = jax.nn.silu(norm(w, f"{name}/norm2", h, cfg.groups))
    if key is not None and cfg.dropout:
        h = jnp.where(jax.random.bernoulli(key, 1 - cfg.dropout, h.shape), h / (1 - cfg.dropout), 0)
    h = conv(w, f"{name}/conv2", h)
    return h + (dense(w, f"{name}/nin_shortcut", x) if f"{name}/nin_shortcut/W" in w else x)


def attention(w: Weights, name: str, x: jax.Array, cfg: UNetConfig) -> jax.Array:
    """One head over all positions."""
    n, h, width, c = x.shape
    rows = norm(w, f"{name}/norm", x, cfg.groups).reshape(n, h * width, c)
    q, k, v = (dense(w, f"{name}/{layer}", rows) for layer in "qkv")
    weights = jax.nn.softmax(q @ k.swapaxes(1, 2) * c**-0.5, axis=-1)
    return x + dense(w, f"{name}/proj_out", weights @ v).reshape(x.shape)


def embed(t: jax.Array, base: int, dtype: Any) -> jax.Array:
    """The sinusoidal embedding of the paper's t."""
    half = base // 2
    angles = (t - 1).astype(dtype)[:, None] * jnp.exp(-jnp.log(1e4) / max(half - 1, 1) * jnp.arange(half, dtype=dtype))
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def network(net: UNet) -> Any:
    """unet(weights, x_t, t, key=None) -> output; key: of dropout."""
    cfg, plan = net.config, net.plan

    def piece(w: Weights, one: Piece, h: jax.Array, temb: jax.Array, key: Any) -> jax.Array:
        if one.kind == "block":
            return block(w, one.name, h, temb, cfg, key)
        if one.kind == "attention":
            return attention(w, one.name, h, cfg)
        if one.kind == "down":
            return conv(w, f"{one.name}/conv", h, 2)
        if one.kind == "up":
            return conv(w, f"{one.name}/conv", h.repeat(2, axis=1).repeat(2, axis=2))
        return conv(w, one.name, h)

    def unet(w: Weights, x_t: jax.Array, t: jax.Array, key: Any = None) -> jax.Array:
        temb = jax.nn.silu(dense(w, "temb/dense0", embed(t, cfg.base, x_t.dtype)))
        temb = jax.nn.silu(dense(w, "temb/dense1", temb))
        h, skips = x_t, []
        keys = [None] * len(plan) if key is None else list(jax.random.split(key, len(plan)))
        for one, own in zip(plan, keys, strict=True):
            if one.kind == "push":
                skips.append(h)
            elif one.kind == "pop":
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            else:
                h = piece(w, one, h, temb, own)
        return conv(w, "conv_out", jax.nn.silu(norm(w, "norm_out", h, cfg.groups)))

    return unet
