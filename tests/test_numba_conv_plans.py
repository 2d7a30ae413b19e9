"""Every way of Numba's convolution: thresholds lowered, so that small shapes take the ways of large ones."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="the Numba backend is not installed here: pip install 'ddpm-ref[numba]'")

from ddpm_ref_numba import NumbaBackend, conv, launch, winograd
from ddpm_ref_numba.simd import WIDTH

from ddpm_ref import backend_cases as cases
from ddpm_ref.backend_cases import Case, check_case, check_values
from ddpm_ref.checks import Array

RUNS = {threads: NumbaBackend(threads) for threads in (1, 2, 3)}
ROWS = winograd.ROWS
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 13)


@contextmanager
def planned_as(once: bool | None, groups: int, block: int, parts: bool, small: int = 0) -> Iterator[Counter[str]]:
    """Plan all convolutions so, and count what is done.

    once, groups: what `conv._plan` says (None: whatever it says).  block: tiles at a time (0: by the rule).
    parts: 16 tiles at a time in the filter gradient.  small: `conv._SMALL`.
    """
    seen: Counter[str] = Counter()
    plan, forward, products = conv._plan, winograd.forward, winograd.filter_products

    def planned(tiles: int, c: int, d: int, lanes: int, threads: int) -> tuple[bool, int]:
        return plan(tiles, c, d, lanes, threads) if once is None else (once, max(1, min(groups, threads, tiles)))

    def counted_forward(threads: int, *args: Any) -> None:
        (n, h, w), size, group_count, packed_here = args[5:8], args[11], args[12], args[15]
        tiles = n * -(-h // 4) * -(-w // 4)
        shares = [(g + 1) * tiles // group_count - g * tiles // group_count for g in range(group_count)]
        seen["once" if packed_here else "packed before"] += 1
        seen["several groups"] += group_count > 1
        seen["several threads in a group"] += threads // group_count > 1
        seen["several blocks"] += max(shares) > size
        seen["a short last block"] += any(share > size and share % size for share in shares)
        seen["turned, packed before"] += args[16] and not packed_here
        seen["bias of each image"] += args[3] > 0
        forward(threads, *args)

    def counted_products(threads: int, *args: Any) -> None:
        seen["a part after the first"] += args[4] > 0
        seen["a part that begins within an image"] += args[4] % args[6] > 0
        products(threads, *args)

    with (
        patch.object(conv, "_plan", planned),
        patch.object(conv, "_SMALL", small),
        patch.object(conv, "_blocks", (lambda tiles, channels: block) if block else conv._blocks),
        patch.object(conv, "_GRADIENT_BYTES", 0 if parts else conv._GRADIENT_BYTES),
        patch.object(winograd, "forward", counted_forward),
        patch.object(winograd, "filter_products", counted_products),
    ):
        yield seen


@st.composite
def convolutions(draw: Any) -> Case:
    """Odd sizes, a bias for all or for each image, one or two vectors of channels or parts of them."""
    c, d = (draw(st.sampled_from([3, WIDTH, 2 * WIDTH, 3 * WIDTH])) for _ in range(2))
    how: Any = dict(per_image=draw(st.booleans()), plus=draw(st.booleans()), seed=draw(seeds))
    shape = draw(st.integers(1, 4)), draw(sizes), draw(sizes), c, d
    return cases.conv3x3(*shape, stride=draw(st.sampled_from([1, 2])), **how)


blocks = st.sampled_from([ROWS, 2 * ROWS])
plans = st.fixed_dictionaries(
    {"once": st.booleans(), "groups": st.integers(1, 3), "block": blocks, "parts": st.booleans()}
)


@given(convolutions(), plans, st.sampled_from([1, 2, 3]))
def test_every_plan_computes_and_differentiates_as_numpy_does(case: Case, plan: Any, threads: int) -> None:
    """And the same bits again, wherever the arrays lie, as the contract has it."""
    with planned_as(**plan), launch.guard():
        check_case(RUNS[threads], case)


EVERY = (5, 10, 11, 2 * WIDTH, 6 * WIDTH)  # 45 tiles, some not at an edge; shares of 15, 22, 45 fill no whole blocks


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("threads", RUNS)
@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("once", [True, False])
def test_every_branch_is_taken_and_right(once: bool, groups: int, threads: int, stride: int) -> None:
    case = cases.conv3x3(*EVERY, stride=stride, per_image=groups != 2, plus=threads == 2)
    groups = min(groups, threads)
    with planned_as(once, groups, ROWS, parts=True) as seen, launch.guard():
        check_values(RUNS[threads], case)
    wanted = {"a part after the first", "a part that begins within an image", "once" if once else "packed before"}
    wanted |= {"several groups"} if groups > 1 else set()
    wanted |= {"several threads in a group"} if threads // groups > 1 else set()
    wanted |= {"turned, packed before", "several blocks", "a short last block"} if not once else set()
    wanted |= {"bias of each image"} if case.args[2].ndim == 2 else set()
    assert wanted <= {name for name, count in seen.items() if count}, seen


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((8, 32, 32, 64, 64), {"packed before", "several groups", "several blocks", "a part after the first"}),
        ((2, 8, 8, 256, 256), {"once", "several threads in a group"}),
        ((16, 8, 8, 32, 32), {"once", "several groups"}),
    ],
)
def test_layers_of_a_network_go_these_ways_by_the_rule_itself(shape: tuple[int, ...], wanted: set[str]) -> None:
    with planned_as(None, 0, 0, parts=False, small=conv._SMALL) as seen:
        check_values(RUNS[2], cases.conv3x3(*shape, per_image=True))
    assert wanted <= {name for name, count in seen.items() if count}, seen


# ---- the rule


tiles = st.integers(1, 5000)
vectors = st.integers(1, 64).map(lambda k: k * WIDTH)


@given(tiles, vectors, vectors, st.integers(1, 64))
def test_groups_are_no_more_than_threads_and_have_tiles_for_each(tiles: int, c: int, d: int, threads: int) -> None:
    once, groups = conv._plan(tiles, c, d, winograd.panel(d), threads)
    assert type(once) is bool and 1 <= groups <= threads
    assert groups == 1 or tiles // groups >= 16


@given(tiles, vectors)
def test_blocks_are_whole_rows_of_register_tiles_few_enough_for_the_cache_and_of_one_size(tiles: int, c: int) -> None:
    block = conv._blocks(tiles, c)
    most = min(max(4096 // c, 16), 32)
    parts = -(-tiles // most)
    assert block % ROWS == 0 and 0 < block < most + ROWS
    assert block * parts >= tiles, "they cover all tiles"
    assert block - ROWS < -(-tiles // parts) <= block, "in equal parts, rounded up to whole rows"


@pytest.mark.parametrize(
    ("tiles", "c", "d", "threads", "once", "groups"),
    [
        (512, 16, 16, 2, True, 2),  # 2¹³ numbers of V
        (513, 16, 16, 2, False, 2),
        (256, 512, 256, 2, True, 1),  # no more tiles than filters, 2¹⁷ numbers of V
        (257, 512, 256, 2, False, 2),
        (256, 528, 256, 2, False, 2),
        (63, 32, 32, 1, True, 1),
        (63, 32, 32, 2, True, 2),  # one panel of filters for two threads: the tiles are shared instead
        (63, 32, 64, 2, True, 1),
        (128, 32, 64, 2, True, 2),  # twice as many tiles as filters
        (127, 32, 64, 2, True, 1),
        (40, 512, 32, 8, False, 2),  # 16 tiles at least for a group
        (15, 1024, 32, 8, True, 1),
    ],
)
def test_the_rule_is_as_it_is_written_down(tiles: int, c: int, d: int, threads: int, once: bool, groups: int) -> None:
    assert conv._plan(tiles, c, d, 32, threads) == (once, groups)


def test_with_the_same_threads_and_plan_the_bits_are_the_same() -> None:
    case = cases.conv3x3(2, 33, 30, 2 * WIDTH, WIDTH)
    x, W, b = (a.astype(np.float32) for a in case.args)

    def bits(threads: int) -> list[bytes]:
        y, backward = NumbaBackend(threads).conv3x3(x, W, b)
        gradients: tuple[Array, ...] = backward(y)
        return [a.tobytes() for a in (y, *gradients)]

    for threads in RUNS:
        assert bits(threads) == bits(threads)
