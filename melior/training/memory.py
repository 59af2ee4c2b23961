"""How the C library hands memory out to a training process."""

from __future__ import annotations

import ctypes
import os
import sys

_M_ARENA_MAX = -8
"""Of glibc's malloc.h."""


def share_freed_memory() -> None:
    """Let all threads take from one heap, where the C library is glibc.

    Autograd runs backward passes on the CPU in a thread, to which glibc gives a heap of its own:
    what the forward pass has freed then does not serve the backward pass, nor the other way round.
    So it is with the threads in which transformers reads weights. Of use before a thread begins;
    `MALLOC_ARENA_MAX`, where it is set, is left to its user.
    """
    if not sys.platform.startswith("linux") or "MALLOC_ARENA_MAX" in os.environ:
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)
