"""JAX's side of a job, on a CPU: whole steps as one jitted function each, with its own random numbers.

Adam, clipping and EMA are written out, over the same names as ours; what a step replaces is donated. JAX has no option
for its threads: with fewer than there are cores, its process is held to as many cores.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.cases import Job
from benchmarks.contestant import Contestant, mean_clock, median_clock, one_clock, peak_memory
from benchmarks.problem import SAMPLING, STEP, make_problem, random_images
from ddpm_ref.forward import posterior_coefficients
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.params import Params
from ddpm_ref.schedule import Schedule

State = dict[str, Any]


def contestant(job: Job) -> Contestant:
    """JAX on a CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity") and job.threads < len(os.sched_getaffinity(0)):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    import jax

    jax.config.update("jax_enable_x64", job.dtype == "float64")
    start = peak_memory()
    side = _reach(job) if job.what == "reach" else _sampler(job) if job.what in SAMPLING else _training(job)
    side.facts["start_memory_gib"] = start
    return side


def _version() -> str:
    import jax

    return f"JAX {jax.__version__}"


def _weights(params: Params) -> dict[str, Any]:
    import jax.numpy as jnp

    return {name: jnp.array(params[name]) for name in params}


def descent(settings: AdamSettings) -> Callable[[State, Any], State]:
    """Clipping, Adam and EMA as a function of {w, m, v, ema, k} and the gradient."""
    import jax
    import jax.numpy as jnp

    s, each = settings, jax.tree.map

    def descend(state: State, grads: Any) -> State:
        k = state["k"] + 1
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        clip = jnp.minimum(1.0, (s.clip_norm or jnp.inf) / norm)
        grads = each(lambda g: g * clip, grads)
        m = each(lambda m, g: s.beta_1 * m + (1 - s.beta_1) * g, state["m"], grads)
        v = each(lambda v, g: s.beta_2 * v + (1 - s.beta_2) * g * g, state["v"], grads)
        rate = s.lr * (jnp.minimum(k / s.warmup, 1.0) if s.warmup else 1.0) / (1 - s.beta_1**k)
        root = 1 / jnp.sqrt(1 - s.beta_2**k)
        w = each(lambda w, m, v: w - rate * m / (jnp.sqrt(v) * root + s.epsilon), state["w"], m, v)
        decay = jnp.where(k > 1, s.ema, 0.0)
        ema = each(lambda e, w: decay * e + (1 - decay) * w, state["ema"], w)
        kept = {"w": w, "m": m, "v": v, "ema": ema}
        return each(lambda new, old: new.astype(old.dtype), kept, {name: state[name] for name in kept}) | {"k": k}

    return descend


def _fresh(params: Params) -> State:
    import jax
    import jax.numpy as jnp

    w = _weights(params)
    zeros = [jax.tree.map(jnp.zeros_like, w) for _ in range(3)]
    return {"w": w, "m": zeros[0], "v": zeros[1], "ema": zeros[2], "k": jnp.zeros((), jnp.int32)}


def _training(job: Job) -> Contestant:
    """Lines 2-5 of Algorithm 1, drawing included, as one function."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.jax_unet import network

    problem = make_problem(job)
    unet = network(problem.net)
    x, t, eps = (jnp.array(a) for a in problem[2:])

    def loss_of(w: Any, x_t: Any, t: Any, eps: Any, key: Any = None) -> tuple[Any, Any]:
        output = unet(w, x_t, t, key)
        return jnp.mean((output - eps) ** 2), output

    of_all = jax.jit(jax.value_and_grad(loss_of, has_aux=True))
    (_, output), grads = of_all(_weights(problem.params), x, t, eps)
    results = {"output": [np.asarray(output)], "gradient": list(problem.ordered(grads))}
    data, abar = jnp.array(random_images(job).pixels), jnp.array(Schedule.linear().alpha_bar, x.dtype)
    descend = descent(AdamSettings())

    def one(state: State, key: Any) -> tuple[State, Any]:
        keys = jax.random.split(key, 5)
        index = jax.random.randint(keys[0], (job.batch,), 0, len(data))
        x_0 = data[index].astype(x.dtype) / 127.5 - 1
        t = jax.random.randint(keys[1], (job.batch,), 1, 1001)
        eps = jax.random.normal(keys[2], x_0.shape, x.dtype)
        c = abar[t][:, None, None, None]
        x_t = jnp.sqrt(c) * x_0 + jnp.sqrt(1 - c) * eps
        grads, _ = jax.grad(loss_of, has_aux=True)(state["w"], x_t, t, eps, keys[3])
        return descend(state, grads), keys[4]

    step, now = jax.jit(one, donate_argnums=0), {"state": _fresh(problem.params), "key": jax.random.key(0)}

    def call() -> None:
        now["state"], now["key"] = step(now["state"], now["key"])
        jax.block_until_ready(now["state"])

    return Contestant(_version(), {"": call}, results, lambda _: None, median_clock)


def _sampler(job: Job) -> Contestant:
    """ε_θ(x_t, t) and line 4 of Algorithm 2 with x̂_0 clipped; t is an argument, so that one function serves all."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.jax_unet import network

    problem, schedule = make_problem(job), Schedule.linear()
    w, unet, x = _weights(problem.params), network(problem.net), jnp.array(problem.x)
    table = jnp.array(_coefficients(schedule).astype(job.dtype))

    def one(w: Any, x_t: Any, t: Any, key: Any) -> Any:
        a, b, c_0, c_t, sigma = table[t - 1]
        eps = unet(w, x_t, jnp.full((job.batch,), t))
        x_0 = jnp.clip(a * x_t - b * eps, -1, 1)
        return c_0 * x_0 + c_t * x_t + sigma * jax.random.normal(key, x_t.shape, x_t.dtype)

    step = jax.jit(one)
    now = {"x": x, "t": job.T, "calls": 0}

    def draw(round_: int) -> None:
        now["x"] = jax.random.normal(jax.random.key(round_), x.shape, x.dtype)

    def reverse(t: int) -> Any:
        now["calls"] += 1
        return jax.block_until_ready(step(w, now["x"], t, jax.random.key(now["calls"])))

    def onward() -> None:
        now["x"] = reverse(now["t"])
        now["t"] -= 1
        if not now["t"]:
            now["t"] = job.T
            draw(now["calls"])

    results = {"output": [np.asarray(jax.jit(unet)(w, x, jnp.full((job.batch,), STEP)))]}
    whole = {"sample": lambda: reverse(STEP), "images": onward, "chain": lambda: [onward() for _ in range(job.T)]}
    clock = mean_clock if job.what == "images" else median_clock
    return Contestant(_version(), {"": whole[job.what]}, results, draw if job.what == "sample" else _same, clock)


def _coefficients(schedule: Schedule) -> np.ndarray:
    """Of each t = 1 … T: x̂_0 = a x_t - b ε, and c_0, c_t, σ of the step from it, (T, 5)."""
    t = np.arange(1, schedule.T + 1)
    abar, (c_0, c_t) = schedule.alpha_bar[1:], posterior_coefficients(schedule, t)
    sigma = np.sqrt(schedule.beta[1:]) * (t > 1)
    return np.stack([1 / np.sqrt(abar), np.sqrt(1 / abar - 1), c_0, c_t, sigma], axis=1)


def _same(_round: int) -> None:
    """A chain draws by itself."""


def _reach(job: Job) -> Contestant:
    """Training on the digits with our draws."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.jax_unet import network
    from benchmarks.runs import contest, make_lesson

    net, settings, schedule, draws = make_lesson(job)
    unet, descend, abar = network(net), descent(settings.adam), schedule.alpha_bar
    kind = np.float64 if job.dtype == "float64" else np.float32

    def loss_of(w: Any, x_t: Any, t: Any, eps: Any) -> Any:
        return jnp.mean((unet(w, x_t, t) - eps) ** 2)

    def one(state: State, x_0: Any, a: Any, b: Any, t: Any, eps: Any, key: Any) -> tuple[State, Any, Any]:
        spent = jax.random.normal(key, eps.shape, eps.dtype)  # as much noise as it would draw
        loss, grads = jax.value_and_grad(loss_of)(state["w"], a * x_0 + b * eps, t, eps)
        return descend(state, grads), loss, spent

    step = jax.jit(one, donate_argnums=0)

    def losses() -> Iterator[float]:
        state = _fresh(net.init(settings.seed, kind))
        for k, draw in enumerate(draws):
            c = abar[draw.t][:, None, None, None]
            a, b = np.sqrt(c).astype(kind), np.sqrt(1 - c).astype(kind)
            state, loss, _ = step(state, draw.x_0, a, b, draw.t, draw.eps, jax.random.key(k))
            yield float(loss)

    return contest(job, _version(), losses, one_clock)
