"""One block of memory for a program that allocates in the same order each time: watched once, then planned.

A CUDA graph writes where its kernels wrote when it was captured, so that memory must stay its own. `Recording` notes
sizes and lifetimes of everything that one run allocates; `Arena` gives each a fixed place such that what lives at the
same time does not overlap, and hands the places out again in the same order.
"""

from dataclasses import dataclass, field

ALIGNMENT = 512  # bytes, as in CuPy's own pool


@dataclass
class Block:
    """What was allocated: its size, when (which event), and when it was freed; None if it outlived the run."""

    size: int
    first: int
    last: int | None = None


@dataclass
class Recording:
    """Sizes and lifetimes, in the order of allocation."""

    blocks: list[Block] = field(default_factory=list)
    _live: dict[int, Block] = field(default_factory=dict)
    _events: int = 0

    def took(self, key: int, size: int) -> None:
        """Something was allocated. key: until it is freed, no other has it, unless its size is 0."""
        if not size:
            return
        self._events += 1
        block = Block(size, self._events)
        self.blocks.append(block)
        self._live[key] = block

    def gave(self, key: int) -> None:
        """It was freed."""
        if key not in self._live:
            return
        self._events += 1
        self._live.pop(key).last = self._events


def plan(blocks: list[Block]) -> tuple[list[int], int]:
    """An offset for each block, and the size of all: no two that live at once overlap.

    The largest first, each at the lowest place that is free through its whole life; that comes to within a few per cent
    of the most that lives at once.
    """
    offsets = [0] * len(blocks)
    placed: list[int] = []
    for i in sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, i)):
        size, offset = _rounded(blocks[i].size), 0
        beside = sorted(
            (offsets[j], offsets[j] + _rounded(blocks[j].size)) for j in placed if _together(blocks[i], blocks[j])
        )
        for low, high in beside:
            if offset + size <= low:
                break
            offset = max(offset, high)
        offsets[i] = offset
        placed.append(i)
    return offsets, max((offsets[i] + _rounded(blocks[i].size) for i in placed), default=0)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _together(a: Block, b: Block) -> bool:
    """Whether both live at some time."""
    return (a.last is None or b.first < a.last) and (b.last is None or a.first < b.last)


def peak(blocks: list[Block]) -> int:
    """The most bytes that live at once: no plan needs less."""
    changes = [(b.first, _rounded(b.size)) for b in blocks]
    changes += [(b.last, -_rounded(b.size)) for b in blocks if b.last is not None]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


class Arena:
    """The places of one recorded run, given out in its order."""

    def __init__(self, recording: Recording) -> None:
        self._blocks = recording.blocks
        self._offsets, self.size = plan(self._blocks)
        self._next = 0

    def place(self, size: int) -> int:
        """The offset of the next block; RuntimeError if the run that was recorded asked for something else here."""
        if not size:
            return 0
        if self._next == len(self._blocks) or self._blocks[self._next].size != size:
            wanted = "nothing" if self._next == len(self._blocks) else f"{self._blocks[self._next].size} bytes"
            raise RuntimeError(f"allocation {self._next} of a captured step: {wanted} when recorded, {size} bytes now")
        self._next += 1
        return self._offsets[self._next - 1]

    def check_used_up(self) -> None:
        """RuntimeError if the run allocated less than the recorded one."""
        if self._next != len(self._blocks):
            raise RuntimeError(f"a captured step: {len(self._blocks)} allocations when recorded, {self._next} now")
