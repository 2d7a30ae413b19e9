"""The plan of a captured step's memory: what lives at once does not overlap, and the block is near what must be."""

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ddpm_ref_cupy import CupyBackend
from ddpm_ref_cupy.arena import ALIGNMENT, Arena, Block, Recording, peak, plan
from ddpm_ref_cupy.device import Device
from hypothesis import given
from hypothesis import strategies as st
from small_run import differences, variant

from ddpm_ref.checks import Array


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    """Programs: allocate so much, or free one of what lives."""
    recording, live = Recording(), []
    for key in range(draw(st.integers(1, 40))):
        if live and draw(st.booleans()):
            recording.gave(live.pop(draw(st.integers(0, len(live) - 1))))
        recording.took(key, draw(st.sampled_from([0, 1, 511, 512, 513, 4096, 100_000])))
        live.append(key)
    return recording


def _together(a: Block, b: Block) -> bool:
    ends = [block.last or 10**9 for block in (a, b)]
    return max(a.first, b.first) < min(ends)


@given(recordings())
def test_blocks_that_live_at_once_lie_apart_aligned_and_within_the_size(recording: Recording) -> None:
    offsets, size = plan(recording.blocks)
    assert peak(recording.blocks) <= size <= sum(-(-b.size // ALIGNMENT) * ALIGNMENT for b in recording.blocks)
    for i, a in enumerate(recording.blocks):
        assert a.size > 0 and offsets[i] % ALIGNMENT == 0 and offsets[i] + a.size <= size
        for j, b in enumerate(recording.blocks[:i]):
            if _together(a, b):
                assert offsets[i] + a.size <= offsets[j] or offsets[j] + b.size <= offsets[i]


def test_a_chain_in_which_each_array_is_made_from_the_one_before_needs_two_at_a_time() -> None:
    recording = Recording()
    for key in range(10):
        recording.took(key, 4096)
        if key:
            recording.gave(key - 1)
    assert plan(recording.blocks)[1] == peak(recording.blocks) == 2 * 4096


@given(recordings())
def test_the_places_are_given_out_in_order_and_only_as_recorded(recording: Recording) -> None:
    arena = Arena(recording)
    offsets, _ = plan(recording.blocks)
    assert [arena.place(b.size) for b in recording.blocks] == offsets
    arena.check_used_up()
    assert arena.place(0) == 0
    with pytest.raises(RuntimeError, match="nothing when recorded, 8 bytes now"):
        arena.place(8)
    other = Arena(recording)
    if recording.blocks:
        with pytest.raises(RuntimeError, match=f"allocation 0 .*: {recording.blocks[0].size} bytes when recorded, 7 "):
            other.place(7)
        with pytest.raises(RuntimeError, match=f"{len(recording.blocks)} allocations when recorded, 0 now"):
            other.check_used_up()


class _Memory(np.ndarray):
    """Bytes whose end can be noticed."""


def watched(device: Device, kept: dict[str, Any]) -> Device:
    """The device, whose `empty` is noted in kept["recording"] or served from kept["arena"]'s block, if there is one."""

    def empty(shape: tuple[int, ...], dtype: Any) -> Array:
        dtype = np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        if "arena" in kept:
            offset = kept["arena"].place(size)
            memory = kept["block"][offset : offset + size]
        else:
            memory = _Memory(size, np.uint8)  # which owns its bytes, so that arrays in it keep it and nothing else
            kept["recording"].took(id(memory), size)
            weakref.finalize(memory, kept["recording"].gave, id(memory)).atexit = False
        memory.fill(0xFF)  # NaN: whoever still needed what lay here will notice
        return np.ndarray(shape, dtype, buffer=memory) if size else np.empty(shape, dtype)

    device.empty = empty  # type: ignore[method-assign]
    return device


@pytest.mark.parametrize("name", ["dropout", "micro-batches"])
def test_a_training_step_in_one_planned_block_gives_the_same_bits(host: Callable[..., Any], name: str) -> None:
    kept: dict[str, Any] = {"recording": Recording()}
    usual, planned = (
        variant(name, backend=CupyBackend(device=host())),
        variant(name, backend=CupyBackend(device=host())),
    )
    assert usual.steps(1)[0] and planned.steps(1)[0]
    watched(planned.backend.run, kept)  # type: ignore[attr-defined]
    own = planned._own
    own.launch()  # type: ignore[union-attr]
    kept["arena"] = Arena(kept["recording"])
    whole = np.empty(kept["arena"].size + ALIGNMENT, np.uint8)
    kept["block"] = whole[-whole.ctypes.data % ALIGNMENT :]
    own.launch()  # type: ignore[union-attr]
    kept["arena"].check_used_up()
    usual.steps(2)
    planned.state.step += 2
    assert differences(usual.host_state(), planned.host_state()) == []
    blocks = kept["recording"].blocks
    assert len(blocks) > 100 and kept["arena"].size < 1.1 * peak(blocks) < 0.7 * sum(b.size for b in blocks)
