"""One request to the C library that spares the NumPy backend its page faults."""

import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for the next array instead of handing it back to the system; True if it will.

    A training step frees and takes hundreds of MiB. By default glibc unmaps large blocks, and every page then costs a
    fault and a clearing when it is next touched: a tenth of a step and more. The process keeps its peak size instead.
    Affects the whole process, so only `Trainer` and the command line call it. Elsewhere than on glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    import ctypes  # here, because importing it costs more than the rest of the package's small modules together

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
