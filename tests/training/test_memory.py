"""One heap for all threads, counted by the C library itself."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, torch
from melior.options import OptimConfig
from melior.training.loop import descend

layer = torch.nn.Linear(300, 300)
step = descend(
    lambda rows: (layer(rows).square().mean(), {}),
    dict(layer.named_parameters()),
    OptimConfig(),
    total_steps=1,
)
step([torch.ones(300, 300)])
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a matter of glibc")
def test_backward_passes_take_from_the_heap_of_forward_passes():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<heap nr=") == 1
