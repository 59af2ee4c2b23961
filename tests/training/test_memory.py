"""One heap for all threads, counted by the C library itself."""

import subprocess
import sys

import pytest

STEP = """
import torch
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
"""
LOAD = """
import sys
from melior.models.loading import load
from melior.options import ModelOptions

model = load(ModelOptions(sys.argv[1], device="cpu"), trainable=True)
"""
COUNT = """
import ctypes

libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(1, b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a matter of glibc")
@pytest.mark.parametrize("program", [STEP, LOAD], ids=["backward", "reading weights"])
def test_what_threads_take_is_of_one_heap(program, model_folder):
    done = subprocess.run(
        [sys.executable, "-c", program + COUNT, model_folder], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<heap nr=") == 1
