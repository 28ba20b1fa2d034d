"""Memory that is freed at each step and taken again at the next."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of glibc's `mallopt` parameters, from its malloc.h."""


def keep_freed_memory() -> bool:
    """Let this process keep the large blocks that it frees, from now on.

    By default glibc maps blocks of over 32 MB anew each time, and the kernel fills them with zeros
    at first touch. Activations of 32 volumes of 64^3 are such blocks, and so are shards: it takes
    an eighth of a training step on a CPU.

    Returns:
        Whether that could be done; other C libraries have no such switch.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1) and mallopt(_TOP_PAD, 1 << 26)
    )
