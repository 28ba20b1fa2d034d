"""Memory that is freed at each step and taken again at the next."""

import ctypes

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Numbers of glibc's `mallopt` parameters, from its malloc.h."""


ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
"""Environment of processes that fit in another thread than their first one, as Ray's workers do.

glibc gives each further thread an arena of its own, made of pieces of 64 MB: a larger block is
mapped again each time whatever `keep_freed_memory` says, and pieces that fall empty are given back.
"""


def keep_freed_memory() -> bool:
    """Let this process keep the large blocks that it frees, from now on: see `ONE_ARENA`.

    By default glibc maps blocks of over 32 MB again each time, and the kernel fills them with zeros
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
