"""The paper's U-Net in PyTorch, layer for layer from `UNet.plan`, with the weights of our parameters."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm_ref.nn.ops import time_embedding
from ddpm_ref.nn.params import Params
from ddpm_ref.nn.unet import UNet


def _conv(p: Any, layer: str) -> nn.Conv2d:
    """A convolution or 1x1 from W (3, 3, C, D) or (C, D)."""
    W = torch.from_numpy(np.array(p[f"{layer}/W"]))
    W = W.permute(3, 2, 0, 1) if W.ndim == 4 else W.T[:, :, None, None]
    conv = nn.Conv2d(W.shape[1], W.shape[0], W.shape[2], padding=W.shape[2] // 2)
    conv.weight.data = W.contiguous()
    conv.bias.data = torch.from_numpy(np.array(p[f"{layer}/b"]))
    return conv


def _linear(p: Any, layer: str) -> nn.Linear:
    W = torch.from_numpy(np.array(p[f"{layer}/W"]))
    linear = nn.Linear(*W.shape)
    linear.weight.data = W.T.contiguous()
    linear.bias.data = torch.from_numpy(np.array(p[f"{layer}/b"]))
    return linear


def _norm(p: Any, layer: str, groups: int) -> nn.GroupNorm:
    gamma = torch.from_numpy(np.array(p[f"{layer}/gamma"]))
    norm = nn.GroupNorm(groups, len(gamma), eps=1e-6)
    norm.weight.data, norm.bias.data = gamma, torch.from_numpy(np.array(p[f"{layer}/beta"]))
    return norm


class Block(nn.Module):
    """A residual block."""

    def __init__(self, p: Any, c_in: int, c_out: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(p, "norm1", groups), _conv(p, "conv1")
        self.temb_proj = _linear(p, "temb_proj")
        self.norm2, self.conv2 = _norm(p, "norm2", groups), _conv(p, "conv2")
        self.dropout = nn.Dropout(dropout)
        self.shortcut = _conv(p, "nin_shortcut") if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(temb)[:, :, None, None]
        return self.conv2(self.dropout(F.silu(self.norm2(h)))) + self.shortcut(x)


class Attention(nn.Module):
    """Self-attention over all positions, one head, by PyTorch's fused kernel; q, k and v in one product."""

    def __init__(self, p: Any, groups: int) -> None:
        super().__init__()
        self.norm = _norm(p, "norm", groups)
        parts = [_conv(p, layer) for layer in "qkv"]
        self.qkv = nn.Conv2d(parts[0].in_channels, 3 * parts[0].out_channels, 1)
        self.qkv.weight.data = torch.cat([c.weight.data for c in parts])
        self.qkv.bias.data = torch.cat([c.bias.data for c in parts if c.bias is not None])
        self.proj_out = _conv(p, "proj_out")

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).permute(0, 2, 3, 1).reshape(n, 1, h * w, 3 * c).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.reshape(n, h, w, c).permute(0, 3, 1, 2))


class TorchUNet(nn.Module):
    """`UNet` with the weights of `params`: x_t (N, C, H, W), embedding (N, base) -> (N, out_channels, H, W)."""

    def __init__(self, net: UNet, params: Params) -> None:
        super().__init__()
        cfg = net.config
        self.plan = net.plan
        self.dense0, self.dense1 = _linear(params, "temb/dense0"), _linear(params, "temb/dense1")
        self.pieces = nn.ModuleList()
        for kind, name, c_in, c_out in net.plan:
            p = params.under(name)
            if kind == "block":
                self.pieces.append(Block(p, c_in, c_out, cfg.groups, cfg.dropout))
            elif kind == "attention":
                self.pieces.append(Attention(p, cfg.groups))
            elif kind in ("up", "down"):
                self.pieces.append(_conv(p, "conv"))
                if kind == "down":
                    self.pieces[-1].padding, self.pieces[-1].stride = (0, 0), (2, 2)
            else:
                self.pieces.append(_conv(params, name) if kind == "conv" else nn.Identity())
        self.norm_out, self.conv_out = _norm(params, "norm_out", cfg.groups), _conv(params, "conv_out")

    def convolution(self, name: str) -> nn.Conv2d:
        """The 3x3 convolution of one of our names, such as down_0/block_0/conv1."""
        if name == "conv_out":
            return self.conv_out
        owner, _, layer = name.rpartition("/")
        for (kind, piece_name, *_), piece in zip(self.plan, self.pieces, strict=True):
            if kind in ("conv", "block", "up", "down") and piece_name == (owner or layer):
                return getattr(piece, layer) if kind == "block" else piece
        raise KeyError(name)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        temb = F.silu(self.dense1(F.silu(self.dense0(embedding))))
        h, skips = x, []
        for (kind, *_), piece in zip(self.plan, self.pieces, strict=True):
            if kind == "push":
                skips.append(h)
            elif kind == "pop":
                h = torch.cat([h, skips.pop()], dim=1)
            elif kind == "block":
                h = piece(h, temb)
            elif kind == "down":
                h = piece(F.pad(h, (0, 1, 0, 1)))
            elif kind == "up":
                h = piece(F.interpolate(h, scale_factor=2.0, mode="nearest"))
            else:
                h = piece(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def gradients(model: TorchUNet, net: UNet) -> dict[str, np.ndarray]:
    """Every parameter's gradient, as `by_our_names`."""
    return by_our_names(model, net, lambda p: p.grad)


def by_our_names(model: TorchUNet, net: UNet, of: Callable[[Tensor], Any]) -> dict[str, np.ndarray]:
    """What `of` gives for each parameter, shaped as that, by our name and in our order of axes."""
    found: dict[str, np.ndarray] = {}

    def put(name: str, layer: Any, part: Tensor | None = None) -> None:
        W = of(layer.weight) if part is None else part
        if W.ndim == 4 and W.shape[2] == 1:
            W = W[:, :, 0, 0]
        kinds = ("gamma", "beta") if W.ndim == 1 else ("W", "b")
        found[f"{name}/{kinds[0]}"] = W.permute(*range(W.ndim)[2:], 1, 0) if W.ndim > 1 else W
        if part is None:
            found[f"{name}/{kinds[1]}"] = of(layer.bias)

    put("temb/dense0", model.dense0)
    put("temb/dense1", model.dense1)
    put("norm_out", model.norm_out)
    put("conv_out", model.conv_out)
    for (kind, name, *_), piece in zip(model.plan, model.pieces, strict=True):
        if kind == "conv":
            put(name, piece)
        elif kind in ("up", "down"):
            put(f"{name}/conv", piece)
        elif kind == "attention":
            put(f"{name}/norm", piece.norm)
            put(f"{name}/proj_out", piece.proj_out)
            parts = zip("qkv", of(piece.qkv.weight).chunk(3), of(piece.qkv.bias).chunk(3), strict=True)
            for layer, W, b in parts:
                put(f"{name}/{layer}", piece.qkv, W)
                found[f"{name}/{layer}/b"] = b
        elif kind == "block":
            for layer in ("norm1", "conv1", "temb_proj", "norm2", "conv2"):
                put(f"{name}/{layer}", getattr(piece, layer))
            if isinstance(piece.shortcut, nn.Conv2d):
                put(f"{name}/nin_shortcut", piece.shortcut)
    return {
        name: found[name].float().cpu().numpy() if found[name].dtype != torch.float64 else found[name].numpy()
        for name in net.shapes
    }


def embed(t: np.ndarray, base: int) -> Tensor:
    """The sinusoidal embedding of the paper's t, (N, base)."""
    return torch.from_numpy(time_embedding(t, base).astype(np.float32))
