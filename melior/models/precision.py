"""Products of bfloat16 numbers that keep their float32 sums."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def bfloat16_products(dtype: torch.dtype) -> Iterator[None]:
    """Inside, for bfloat16 weights, a CPU multiplies float32 matrices rounded to bfloat16.

    For copies of bfloat16 numbers the products are exact, and float32 adds them up: the speed of
    bfloat16 without its rounding of the result.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # of torch
    before = matmul.fp32_precision
    try:
        if dtype == torch.bfloat16:
            matmul.fp32_precision = "bf16"
        yield
    finally:
        matmul.fp32_precision = before


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply two matrices; the result has float32 or wider, whatever the factors have."""
    wide = torch.promote_types(right.dtype, torch.float32)
    if right.is_cuda and right.dtype != wide:
        return torch.mm(left.to(right.dtype), right, out_dtype=wide)
    return left.to(wide) @ right.to(wide)
