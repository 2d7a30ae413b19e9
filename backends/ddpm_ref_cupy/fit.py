"""What to say when the card's memory is full: what was needed, what there is, and how many images would fit."""

import traceback
from collections.abc import Callable

from ddpm_ref_cupy.device import Device


def explained(error: MemoryError, run: Device, images: int, needed: Callable[[int], int]) -> MemoryError:
    """An error that tells. images: that were computed at a time.  needed(n): bytes that n at a time take, measured.

    Memory grows by the same amount with each image, so two small measurements tell the rest.
    """
    traceback.clear_frames(error.__traceback__)  # what was computed so far lives in them
    run.forget()
    free, total = run.memory()
    try:
        one, two = needed(1), needed(2)
    except MemoryError:
        return MemoryError(f"not even 2 images at a time fit into {_gib(free)} free of {_gib(total)} on {run.name}")
    each = max(1, two - one)
    fixed = one - each
    fits = max(0, (free - fixed) // each)
    return MemoryError(
        f"{images} images at a time need {_gib(fixed + images * each)}, free are {_gib(free)} of {_gib(total)} on "
        f"{run.name}; {fits} at a time would fit"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
