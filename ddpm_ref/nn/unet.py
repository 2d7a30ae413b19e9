"""The U-Net of the paper (App. B): residual blocks, attention, skips, and time in every block.

`UNet.plan` (see `nn/plan.py`) lists its pieces; forward walks the list, backward walks it in reverse.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from ddpm_ref.backend import Backend
from ddpm_ref.checks import Array, Steps, check_float
from ddpm_ref.nn.ops import Backward
from ddpm_ref.nn.params import Params, Scope, count
from ddpm_ref.nn.plan import Piece, UNetConfig, make_plan, piece_shapes
from ddpm_ref.random import Purpose, uniform

Dropout = Callable[[int, tuple[int, ...]], Array]
Tape = list[tuple[Piece, Backward]]


class UNet:
    """The network as a function of its parameters: `output, backward = net(params, x_t, t, backend)`.

    Holds its configuration and plan, no parameters and no state.
    """

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.plan = list(make_plan(config))
        self.shapes = dict(shape for piece in self._all_pieces() for shape in piece_shapes(piece, config))

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return count(self.shapes)

    def _all_pieces(self) -> Iterator[Piece]:
        yield Piece("temb", "temb")
        yield from self.plan
        yield Piece("out", "", self.plan[-1].c_out, self.config.out_channels)

    def init(self, seed: int, dtype: type[np.floating] = np.float32) -> Params:
        """Fresh parameters: Glorot uniform (variance scaling, fan_avg) from counter-based numbers; biases 0, γ 1, β 0.

        The last layer of every block, every attention and the network itself gets 1e-10 of that variance, so
        each block and attention starts as its shortcut alone, and the network's output near 0.
        """
        params = Params(np.zeros(self.size, dtype), self.shapes)
        for index, (name, shape) in enumerate(self.shapes.items()):
            if name.endswith("/gamma"):
                params[name] = 1
            elif name.endswith("/W"):
                receptive = int(np.prod(shape[:-2]))
                fan_avg = receptive * (shape[-2] + shape[-1]) / 2
                scale = 1e-10 if name.endswith(("conv2/W", "proj_out/W", "conv_out/W")) else 1.0
                u = uniform(seed, Purpose.INIT, 0, [0], shape, layer=index)[0].astype(np.float64)
                params[name] = (2 * u - 1) * np.sqrt(3 * scale / fan_avg)
        return params

    def bind(self, params: Params, backend: Backend | None = None) -> Callable[[Array, Steps], Array]:
        """The network as a model(x_t, t) with these parameters, without dropout: an ε-model if it predicts ε."""
        run = backend or Backend()
        return lambda x_t, t: self(params, x_t, t, run, adjoint=False)[0]

    def __call__(
        self,
        params: Params,
        x_t: Array,
        t: Steps,
        backend: Backend,
        *,
        dropout: Dropout | None = None,
        adjoint: bool = True,
    ) -> tuple[Array, Backward]:
        """The network's output and its adjoint.

        x_t: (N, H, W, C) of the parameters' dtype.  t: one integer or (N,) int, the paper's steps 1..T; (N,) may also
        be an array of the backend, whose `time_embedding` then takes it.
        dropout: None, or dropout(layer, shape) -> uniforms in [0, 1), one layer number for each block.
        adjoint: False if backward will not be called, so that intermediate arrays are freed at once.
        Returns output, (N, H, W, out_channels), and backward(d_output) -> dx, grads with grads a `Params`; it frees
        what it has used as it goes, so it can be called once.
        """
        cfg = self.config
        t = self._checked(params, x_t, t)
        silu_temb, temb_back = _time(params.under("temb"), x_t, t, cfg, backend)
        h, conv_in = backend.conv3x3(x_t, params["conv_in/W"], params["conv_in/b"])
        h, tape = self._forward(params, h, silu_temb, backend, dropout, keep=adjoint)
        h, norm_out = backend.group_norm(h, params["norm_out/gamma"], params["norm_out/beta"], cfg.groups, silu=True)
        output, conv_out = backend.conv3x3(h, params["conv_out/W"], params["conv_out/b"])

        def backward(d_output: Array) -> tuple[Array, Params]:
            if not tape:
                raise RuntimeError(
                    "backward can be called once, and not after adjoint=False: it frees its arrays as it goes"
                )
            g = params.like(np.empty_like(params.vector))
            d, g["conv_out/W"], g["conv_out/b"] = conv_out(d_output)
            d, g["norm_out/gamma"], g["norm_out/beta"] = norm_out(d)
            d, d_temb = _walk_back(tape, d, g, backend)
            dx, g["conv_in/W"], g["conv_in/b"] = conv_in(d)
            temb_back(d_temb, g.under("temb"))
            return dx, g

        return output, backward

    def _forward(
        self, params: Params, h: Array, silu_temb: Array, run: Backend, dropout: Dropout | None, keep: bool
    ) -> tuple[Array, Tape]:
        """Every piece of the plan after conv_in, in order; the tape keeps their adjoints, if they are wanted."""
        cfg = self.config
        tape: Tape = []
        skips: list[Array] = []
        for layer, piece in enumerate(self.plan[1:]):
            p, back = params.under(piece.name), _no_adjoint
            if piece.kind == "push":
                skips.append(h)
            elif piece.kind == "pop":
                h, back = run.concat(h, skips.pop())
            elif piece.kind == "block":
                h, back = _block(p, h, silu_temb, cfg, run, partial(dropout, layer) if dropout else None)
            elif piece.kind == "attention":
                h, back = _attention(p, h, cfg, run)
            else:
                h, back = _resample(piece.kind, p, h, run)
            if keep:
                tape.append((piece, back))
        return h, tape

    def _checked(self, params: Params, x_t: Array, t: Steps) -> Array:
        """t as (N,), after checking that the images fit the network and the parameters."""
        check_float(x_t=x_t)
        factor, channels = self.config.factor, self.config.channels
        if x_t.ndim != 4 or not x_t.size or x_t.shape[3] != channels or any(s % factor for s in x_t.shape[1:3]):
            raise ValueError(
                f"x_t: wanted (N, H, W, {channels}), not empty, H and W divisible by {factor}, got shape {x_t.shape}"
            )
        if params.vector.dtype != x_t.dtype:
            raise ValueError(f"x_t: wanted the parameters' dtype, {params.vector.dtype}, got {x_t.dtype}")
        if params.shapes != self.shapes:
            raise ValueError("params: not the parameters of this network (their names or shapes differ)")
        on_device = hasattr(t, "__array_function__") and not isinstance(t, (np.ndarray, np.generic))
        steps = t if on_device else np.asarray(t)
        small = not on_device and steps.size and steps.min() < 1  # on a device this would wait for it
        if steps.dtype.kind not in "iu" or steps.shape not in ((), (len(x_t),)) or small:
            raise ValueError(
                f"t: wanted one integer >= 1 or ({len(x_t)},) of them, got {steps.dtype} of shape {steps.shape}"
            )
        return np.broadcast_to(steps, (len(x_t),))


# --- the pieces ------------------------------------------------------------------------------------------------------


def _walk_back(tape: Tape, d: Array, g: Params, run: Backend) -> tuple[Array, Array]:
    """The adjoint of `UNet._forward`: from d loss / d h at its end to that at its beginning, and d loss / d SiLU(temb).

    Takes the tape apart, so that each piece's arrays are freed once they are used.
    """
    d_skips: list[Array] = []
    d_temb: Array | None = None
    while tape:
        piece, back = tape.pop()
        if piece.kind == "pop":
            d, d_skip = back(d)
            d_skips.append(d_skip)
        elif piece.kind == "push":
            d, _ = run.add(d, d_skips.pop())
        elif piece.kind == "block":
            d, d_temb = back(d, g.under(piece.name), d_temb)
        else:
            d = back(d, g.under(piece.name))
    return d, d_temb


def _no_adjoint(d: Array, _g: Scope) -> Array:
    """The adjoint slot of a piece that has none of its own (push)."""
    return d


def _time(p: Scope, x_t: Array, t: Array, cfg: UNetConfig, run: Backend) -> tuple[Array, Backward]:
    """SiLU(temb), (N, 4 base), computed once: every block begins by applying its own Dense to it."""
    h = run.time_embedding(t, cfg.base, x_t.dtype)
    h, dense0 = run.dense(h, p["dense0/W"], p["dense0/b"])
    h, silu0 = run.silu(h)
    h, dense1 = run.dense(h, p["dense1/W"], p["dense1/b"])
    h, silu1 = run.silu(h)

    def backward(d: Array, g: Scope) -> None:
        d, g["dense1/W"], g["dense1/b"] = dense1(silu1(d))
        _, g["dense0/W"], g["dense0/b"] = dense0(silu0(d))

    return h, backward


def _block(
    p: Scope,
    x: Array,
    temb: Array,
    cfg: UNetConfig,
    run: Backend,
    uniforms: Callable[[tuple[int, ...]], Array] | None,
) -> tuple[Array, Backward]:
    """A residual block; backward(dy, g, d_temb) -> dx, d_temb with its own added."""
    h, norm1 = run.group_norm(x, p["norm1/gamma"], p["norm1/beta"], cfg.groups, silu=True)
    time, temb_proj = run.dense(temb, p["temb_proj/W"], p["temb_proj/b"])
    # The time enters as the bias of the first convolution, one for each image.
    h, conv1 = run.conv3x3(h, p["conv1/W"], p["conv1/b"] + time)
    h, norm2 = run.group_norm(h, p["norm2/gamma"], p["norm2/beta"], cfg.groups, silu=True)
    drop = None
    if uniforms is not None and cfg.dropout:
        h, drop = run.dropout(h, uniforms(h.shape), cfg.dropout)
    residual, shortcut = x, None
    if x.shape[-1] != h.shape[-1]:
        residual, shortcut = run.dense(x, p["nin_shortcut/W"], p["nin_shortcut/b"])
    y, conv2 = run.conv3x3(h, p["conv2/W"], p["conv2/b"], plus=residual)

    def backward(dy: Array, g: Scope, d_temb: Array | None) -> tuple[Array, Array]:
        d, g["conv2/W"], g["conv2/b"] = conv2(dy)
        d = drop(d) if drop else d
        d, g["norm2/gamma"], g["norm2/beta"] = norm2(d)
        d, g["conv1/W"], d_time = conv1(d)
        d_temb, g["temb_proj/W"], d_bias = temb_proj(d_time, plus=d_temb)
        g["temb_proj/b"] = g["conv1/b"] = d_bias  # they are added, so their gradients are one
        d_residual = dy
        if shortcut:
            d_residual, g["nin_shortcut/W"], g["nin_shortcut/b"] = shortcut(dy)
        dx, g["norm1/gamma"], g["norm1/beta"] = norm1(d, plus=d_residual)
        return dx, d_temb

    return y, backward


def _attention(p: Scope, x: Array, cfg: UNetConfig, run: Backend) -> tuple[Array, Backward]:
    """An attention block over all H·W positions; backward(dy, g) -> dx."""
    n, height, width, c = x.shape
    h, norm = run.group_norm(x, p["norm/gamma"], p["norm/beta"], cfg.groups)
    rows = n, height * width, c
    h = h.reshape(rows)
    q, dense_q = run.dense(h, p["q/W"], p["q/b"])
    k, dense_k = run.dense(h, p["k/W"], p["k/b"])
    v, dense_v = run.dense(h, p["v/W"], p["v/b"])
    h, attend = run.attention(q, k, v)
    y, proj_out = run.dense(h, p["proj_out/W"], p["proj_out/b"], plus=x.reshape(rows))

    def backward(dy: Array, g: Scope) -> Array:
        d, g["proj_out/W"], g["proj_out/b"] = proj_out(dy.reshape(rows))
        dq, dk, dv = attend(d)
        d, g["q/W"], g["q/b"] = dense_q(dq)
        d, g["k/W"], g["k/b"] = dense_k(dk, plus=d)
        d, g["v/W"], g["v/b"] = dense_v(dv, plus=d)
        dx, g["norm/gamma"], g["norm/beta"] = norm(d.reshape(x.shape), plus=dy)
        return dx

    return y.reshape(x.shape), backward


def _resample(kind: str, p: Scope, x: Array, run: Backend) -> tuple[Array, Backward]:
    """Half or double the size; backward(dy, g) -> dx."""
    if kind == "down":
        y, conv = run.conv3x3(x, p["conv/W"], p["conv/b"], stride=2)
        double = None
    else:
        h, double = run.upsample(x)
        y, conv = run.conv3x3(h, p["conv/W"], p["conv/b"])

    def backward(dy: Array, g: Scope) -> Array:
        d, g["conv/W"], g["conv/b"] = conv(dy)
        return double(d) if double else d

    return y, backward
