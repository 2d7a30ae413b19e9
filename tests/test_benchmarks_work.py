"""benchmarks/work.py: the counts against loops that count every operation, the lists against a network that runs."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.cases import CASES
from benchmarks.loops import MOST, preset_loops
from benchmarks.work import Loop, Work, step_loops, step_work
from ddpm_ref.backend import OPERATIONS, Backend
from ddpm_ref.files.data import ImageData
from ddpm_ref.nn.plan import UNetConfig
from ddpm_ref.nn.unet import UNet
from ddpm_ref.schedule import Schedule
from ddpm_ref.train import Trainer, TrainSettings

SMALL = UNetConfig(3, 8, (1, 2), 2, (1,), groups=4, dropout=0.1, image_size=8)
PLAIN = UNetConfig(1, 4, (1, 1, 2), 1, (), groups=2, dropout=0.0, image_size=4)


class Number:
    """A number that counts what is done with it."""

    count = 0

    def _done(self, *_: Any) -> "Number":
        Number.count += 1
        return self

    __add__ = __sub__ = __mul__ = __truediv__ = exp = sqrt = maximum = at_least = _done


def counted(program: Callable[[], Any]) -> int:
    """How many operations a program does."""
    Number.count = 0
    program()
    return Number.count


def reduced(terms: Iterator[Number]) -> Number:
    """A sum that begins with a 0, so that every term is an addition."""
    total = Number()
    for term in terms:
        total = total + term
    return total


A = Number()


def real_taps(h: int, w: int, stride: int) -> list[int]:
    """Of every output of one image, the taps that lie in it: what a convolution of ones by ones in NumPy sums to."""
    ones, filters = np.ones((1, h, w, 1)), np.ones((3, 3, 1, 1))
    y, _ = Backend().conv3x3(ones, filters, np.zeros(1), stride=stride)
    return [round(float(taps)) for taps in y.ravel()]


def conv_forward(n: int, h: int, w: int, c: int, d: int, stride: int) -> None:
    for taps in real_taps(h, w, stride) * (n * d):
        y = A  # b
        for _ in range(taps * c):
            y = y + A * A


def conv_adjoint(n: int, h: int, w: int, c: int, d: int, stride: int) -> None:
    for taps in real_taps(h, w, stride) * (n * d):
        A + A  # db += dy
        for _ in range(taps * c):
            A + A * A  # dx += dy W
            A + A * A  # dW += x dy


@pytest.mark.parametrize(("h", "w", "stride"), [(3, 4, 1), (4, 4, 2), (5, 3, 2), (1, 2, 1), (2, 1, 2)])
def test_convolution_counts_every_tap_in_the_image_of_a_direct_sum(h: int, w: int, stride: int) -> None:
    loop = Loop("conv3x3", (2, h, w, 3), 5, "stride 2" if stride == 2 else "")
    assert loop.forward().flops == counted(lambda: conv_forward(2, h, w, 3, 5, stride))
    adjoint = loop.adjoint()
    assert adjoint is not None and adjoint.flops == counted(lambda: conv_adjoint(2, h, w, 3, 5, stride))
    y = 2 * math.ceil(h / stride) * math.ceil(w / stride) * 5
    x, filters = 2 * h * w * 3, 9 * 3 * 5
    assert loop.forward(8).bytes == 8 * (x + filters + 5 + y)
    assert adjoint.bytes == 4 * (y + x + filters + x + filters + 5)


def test_dense_counts_as_three_products_of_matrices() -> None:
    loop = Loop("dense", (6, 3), 4)

    def forward() -> None:
        for _ in range(6 * 4):
            reduced(A * A for _ in range(3))

    def adjoint() -> None:
        for _ in range(6 * 3):
            reduced(A * A for _ in range(4))  # dx
        for _ in range(3 * 4):
            reduced(A * A for _ in range(6))  # dW
        for _ in range(4):
            reduced(A for _ in range(6))  # db

    assert loop.forward().flops == counted(forward)
    assert loop.adjoint() == Work(counted(adjoint), 4 * (24 + 18 + 12 + 18 + 12 + 4))


@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_counts(silu: bool) -> None:
    n, h, w, c, groups = 2, 2, 3, 6, 3
    size, members = n * h * w * c, h * w * c // groups
    loop = Loop("group_norm", (n, h, w, c), groups, "silu" if silu else "")

    def forward() -> None:
        for _ in range(n * groups):
            reduced(A for _ in range(members)) / A
            centred = [A - A for _ in range(members)]
            ((reduced(one * one for one in centred) / A + A).sqrt(), A / A)
            for one in centred:
                h = one * A * A + A  # r, γ, β
                if silu:
                    h / (h.exp() + A)

    def adjoint() -> None:
        for _ in range(n * groups):
            for _ in range(members):
                x_hat = (A - A) * A
                if silu:
                    h = x_hat * A + A
                    s = A / (h.exp() + A)
                    s * (A + h * (A - s)) * A  # the slope, times dy
                A + A * x_hat  # dγ
                A + A  # dβ
                g = A * A  # γ dh
                (A + g, A + g * x_hat)  # their sums
                (g - A - x_hat * A) * A  # dx
            (A / A, A / A)

    assert size == n * groups * members
    assert loop.forward() == Work(counted(forward), 4 * (2 * size + 2 * c))
    found = loop.adjoint()
    assert found is not None and found.flops == counted(adjoint)


def test_attention_counts() -> None:
    n, size, c = 2, 3, 4
    loop = Loop("attention", (n, size, c))

    def forward() -> None:
        for _ in range(n * size):
            row = [reduced(A * A for _ in range(c)) * A for _ in range(size)]
            for one in row:
                A.maximum(one)
            exp = [(one - A).exp() for one in row]
            reduced(iter(exp))
            row = [one / A for one in exp]
            for _ in range(c):
                reduced(p * A for p in row)

    def adjoint() -> None:
        for _ in range(n * size):
            dP = [reduced(A * A for _ in range(c)) for _ in range(size)]
            reduced(A * d for d in dP)
            for d in dP:
                (d - A) * A * A
            for _ in range(3 * c):  # dq, dk, dv
                reduced(A * A for _ in range(size))

    assert loop.forward() == Work(counted(forward), 4 * 4 * n * size * c)
    assert loop.adjoint() == Work(counted(adjoint), 4 * 7 * n * size * c)


def test_pointwise_counts() -> None:
    def update() -> None:
        A + A * A  # ‖g‖²
        g = A * A  # clipped
        m, v = A * A + A * g, A * A + A * (g * g)
        denominator = v.sqrt() * A + A
        A - m / denominator * A
        A * A + A * A  # EMA

    def reverse_step() -> None:
        x_0 = (A * A - A * A).maximum().maximum()
        A * x_0 + A * A + A * A

    assert Loop("update", (7,)).forward() == Work(7 * counted(update), 7 * 40)
    assert Loop("p_sample", (1, 1, 1, 5)).forward() == Work(5 * counted(reverse_step), 5 * 16)
    assert Loop("q_sample", (1, 1, 1, 5)).forward().flops == 5 * counted(lambda: A * A + A * A)
    assert Loop("dropout", (1, 1, 1, 5)).forward().flops == 5 * counted(lambda: A.at_least(A) * A)
    assert Loop("upsample", (1, 2, 2, 3)).adjoint() == Work(12 * counted(lambda: A + A + A + A), 4 * 5 * 12)
    assert Loop("add", (2, 3)).forward() == Work(6, 72) and Loop("add", (2, 3)).adjoint() is None
    assert Loop("plus", (2, 3)).forward() == Work(6, 24), "its array is read; the result is the operation's"
    assert Loop("concat", (1, 2, 2, 3), 2).forward() == Work(0, 2 * 4 * 20)


def test_floor_is_the_slower_of_computing_and_moving() -> None:
    assert Work(100, 10).floor(10, 10) == 10 and Work(10, 100).floor(10, 10) == 10


# --- the lists -------------------------------------------------------------------------------------------------------


class Recorder(Backend):
    """The NumPy backend, which keeps what it is asked for."""

    def __init__(self) -> None:
        self.calls: Counter[tuple[Loop, str]] = Counter()

    def _note(self, loop: Loop, direction: str = "forward") -> None:
        self.calls[loop, direction] += 1

    def _note_plus(self, plus: Any) -> None:
        if plus is not None:
            self._note(Loop("plus", plus.shape))


def _recording(name: str) -> Callable[..., Any]:
    def method(self: Recorder, *args: Any, **how: Any) -> Any:
        plain = getattr(Backend(), name)
        if name in ("normal", "uniform"):
            self._note(Loop(name, (len(args[3]), *args[4])))
            return plain(*args, **how)
        first = args[1] if name in ("q_sample", "p_sample") else args[0]
        loop = Loop(name, first.shape)
        if name == "conv3x3":
            loop = Loop(name, first.shape, args[1].shape[3], "stride 2" if how.get("stride") == 2 else "")
        elif name == "dense":
            loop = Loop(name, (first.size // first.shape[-1], first.shape[-1]), args[1].shape[1])
        elif name == "group_norm":
            loop = Loop(name, first.shape, args[3], "silu" if how.get("silu") else "")
        elif name == "concat":
            loop = Loop(name, first.shape, args[1].shape[-1])
        self._note(loop)
        self._note_plus(how.get("plus"))
        found = plain(*args, **how)
        if name in ("update", "q_sample", "p_sample"):
            return found
        y, backward = found

        def adjoint(dy: Any, **plus: Any) -> Any:
            self._note(loop, "adjoint")
            self._note_plus(plus.get("plus"))
            return backward(dy, **plus)

        return y, adjoint

    return method


for _name in OPERATIONS:
    setattr(Recorder, _name, _recording(_name))


def without_free_adjoints(calls: Counter[tuple[Loop, str]]) -> Counter[tuple[Loop, str]]:
    """The adjoint of a sum is dy itself: networks need not ask for it."""
    free = ("add", "adjoint"), ("plus", "adjoint")
    return Counter({key: n for key, n in calls.items() if (key[0].operation, key[1]) not in free})


@pytest.mark.parametrize("config", [SMALL, PLAIN, CASES["digits"].config])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_training_steps_loops_are_those_the_network_calls(config: UNetConfig, batch: int) -> None:
    recorder, size = Recorder(), config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (4, size, size, config.channels), dtype=np.uint8)
    trainer = Trainer(UNet(config), Schedule.linear(), ImageData(pixels, 256, "x"), TrainSettings(batch), recorder)
    trainer.step()
    assert without_free_adjoints(step_loops(config, batch, "train")) == without_free_adjoints(recorder.calls)


@pytest.mark.parametrize("config", [SMALL, PLAIN])
def test_a_sampling_steps_loops_are_those_the_network_calls(config: UNetConfig) -> None:
    recorder, net, size = Recorder(), UNet(config), 2 * config.image_size
    x = np.random.default_rng(0).standard_normal((2, size, size, config.channels), dtype=np.float32)
    output = net.bind(net.init(0), recorder)(x, 5)
    recorder.p_sample(Schedule.linear(), x, 5, output, 0, np.arange(2))
    assert step_loops(config, 2, "sample", size) == recorder.calls


def test_a_steps_work_grows_with_its_batch_but_for_the_update_and_the_filters() -> None:
    one, two, four = (step_work(SMALL, n, "train").flops for n in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one))
    update = Loop("update", (UNet(SMALL).size,)).forward().flops
    assert one - (two - one) == pytest.approx(update)


def test_every_operation_is_among_the_loops_of_the_presets() -> None:
    loops = [loop for preset in ("digits", "base64", "cifar10") for loop in preset_loops(preset, (None, None), False)]
    assert {loop.operation for loop in loops} == set(OPERATIONS)
    for preset, operation in itertools.product(("digits", "base64"), OPERATIONS):
        kept = [one for one in preset_loops(preset, (None, None), False) if one.operation == operation]
        assert len([one for one in kept if one.stride == 1]) <= MOST.get(operation, 1)
    every = preset_loops("cifar10", (None, None), True)
    assert len(every) == len(set(every)) and set(preset_loops("cifar10", (None, None), False)) <= set(every)
    assert Loop("conv3x3", (8, 32, 32, 128), 128) in every
