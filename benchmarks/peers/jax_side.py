"""JAX's side of a job, on a CPU: whole steps as one jitted function each, with its own random numbers.

Adam, clipping and EMA are written out, over the same names as ours; what a step replaces is donated. JAX has no option
for its threads: with fewer than there are cores, its process is held to as many cores, and where the system cannot do
that (macOS, Windows) its rows carry a note.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.cases import Job
from benchmarks.contestant import Contestant, mean_clock, median_clock, one_clock, peak_memory
from benchmarks.problem import SAMPLING, STEP, first_draw, make_problem, random_images, reverse_table
from ddpm_ref.nn.optim import AdamSettings
from ddpm_ref.nn.params import Params
from ddpm_ref.schedule import Schedule

State = dict[str, Any]


def contestant(job: Job) -> Contestant:
    """JAX on a CPU."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    note = _hold(job.threads)
    import jax

    jax.config.update("jax_enable_x64", job.dtype == "float64")
    start = peak_memory()
    side = _reach(job) if job.what == "reach" else _sampler(job) if job.what in SAMPLING else _training(job)
    side.facts |= {"start_memory_gib": start} | ({"note": note} if note else {})
    return side


def _hold(threads: int) -> str | None:
    """Hold this process to as many cores; what to say where the system has no call for it."""
    if hasattr(os, "sched_setaffinity"):
        if threads < len(os.sched_getaffinity(0)):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        return None
    cores = os.cpu_count() or 1
    return None if threads >= cores else f"not held to {threads} threads: it may use all {cores} cores"


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
    unet, descend = network(problem.net), descent(AdamSettings(warmup=0))
    data, table = jnp.array(random_images(job).pixels), Schedule.linear().alpha_bar
    abar, dtype = jnp.array(table, problem.x.dtype), problem.x.dtype

    def loss_of(w: Any, x_t: Any, t: Any, eps: Any, key: Any) -> tuple[Any, Any]:
        output = unet(w, x_t, t, key)
        return jnp.mean((output - eps) ** 2), output

    def learn(state: State, x_0: Any, c: Any, t: Any, eps: Any, key: Any = None) -> tuple[State, Any, Any, Any]:
        """Line 5 on x_t = √c x_0 + √(1 - c) ε. key: of dropout."""
        x_t = jnp.sqrt(c) * x_0 + jnp.sqrt(1 - c) * eps
        (loss, output), grads = jax.value_and_grad(loss_of, has_aux=True)(state["w"], x_t, t, eps, key)
        return descend(state, grads), loss, output, grads

    def one(state: State) -> tuple[State, Any]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), state["k"]), 4)
        index = jax.random.randint(keys[0], (job.batch,), 0, len(data))
        x_0 = data[index].astype(dtype) / 127.5 - 1
        t = jax.random.randint(keys[1], (job.batch,), 1, len(table))
        eps = jax.random.normal(keys[2], x_0.shape, dtype)
        return learn(state, x_0, abar[t][:, None, None, None], t, eps, keys[3])[:2]

    results = _compared(job, problem, jax.jit(learn), abar)
    step, now = jax.jit(one, donate_argnums=0), {"state": _fresh(problem.params), "loss": 0.0}

    def call() -> None:
        now["state"], now["loss"] = step(now["state"])
        jax.block_until_ready(now["state"])

    side = Contestant(_version(), {"": call}, results, lambda _: None, median_clock)
    side.last_loss = lambda: float(now["loss"])
    return side


def _compared(job: Job, problem: Any, learn: Any, abar: Any) -> dict[str, list[np.ndarray]]:
    """Output and gradient on the problem's batch, and what the step of our first draws does, without dropout."""
    import jax.numpy as jnp

    x, t, eps = (jnp.array(a) for a in problem[2:])
    one = jnp.ones((job.batch, 1, 1, 1), x.dtype)  # x_t is x
    _, _, output, grads = learn(_fresh(problem.params), x, one, t, eps)
    results = {"output": [np.asarray(output)], "gradient": list(problem.ordered(grads))}
    draw = first_draw(job, problem)
    state, *_ = learn(_fresh(problem.params), draw.x_0, abar[draw.t][:, None, None, None], draw.t, draw.eps)
    for name, kind in (("update", "w"), ("ema", "ema")):
        results[name] = list(problem.moved({key: np.asarray(value) for key, value in state[kind].items()}))
    return results


def _sampler(job: Job) -> Contestant:
    """ε_θ(x_t, t) and line 4 of Algorithm 2 with x̂_0 clipped; t is an argument, so that one function serves all."""
    import jax
    import jax.numpy as jnp

    from benchmarks.peers.jax_unet import network

    problem, schedule = make_problem(job), Schedule.linear()
    w, unet, x = _weights(problem.params), network(problem.net), jnp.array(problem.x)
    table = jnp.array(reverse_table(schedule).astype(job.dtype))

    @jax.jit
    def step(w: Any, x_t: Any, t: Any, calls: Any, temperature: Any) -> tuple[Any, Any]:
        a, b, c_0, c_t, sigma = table[t]
        eps = unet(w, x_t, jnp.full((job.batch,), t))
        x_0 = jnp.clip(a * x_t - b * eps, -1, 1)
        z = jax.random.normal(jax.random.fold_in(jax.random.key(0), calls), x_t.shape, x_t.dtype)
        return c_0 * x_0 + c_t * x_t + temperature.astype(x_t.dtype) * sigma * z, eps

    now, temperature = {"x": x, "t": job.T, "calls": 0}, (np.float32(0), np.float32(1))

    def draw(round_: int) -> None:
        now["x"], now["t"] = jax.random.normal(jax.random.key(round_), x.shape, x.dtype), job.T

    def reverse(t: int) -> Any:
        now["calls"] += 1
        return jax.block_until_ready(step(w, now["x"], t, now["calls"], temperature[1])[0])

    def onward() -> None:
        now["x"] = reverse(now["t"])
        now["t"] -= 1
        if not now["t"]:
            draw(now["calls"])

    after, output = step(w, x, STEP, 0, temperature[0])
    results = {"output": [np.asarray(output)], "step": [np.asarray(after) - problem.x]}
    chain = lambda: [onward() for _ in range(job.T)]  # noqa: E731
    whole = {"sample": lambda: reverse(STEP), "images": chain if job.whole else onward, "chain": chain}
    clock = median_clock if job.what != "images" else one_clock if job.whole else mean_clock
    return Contestant(_version(), {"": whole[job.what]}, results, draw, clock)


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
