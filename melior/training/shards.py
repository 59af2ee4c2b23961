"""Tensors of which each process holds some rows, and files of them that any number can read.

FSDP2 divides each parameter by rows. What a step updates are the rows that its process holds:
plain tensors in the parameter's memory.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from melior.training import processes

WHOLE = "state.safetensors"
"""The file of a process alone; processes that share the work write one each, with its places."""


def is_divided(tensor: Tensor) -> bool:
    """Say whether processes hold parts of a tensor: whether it is a DTensor of torch."""
    return hasattr(tensor, "to_local")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor, in its memory."""
    if not is_divided(tensor):
        return tensor
    local: Tensor = tensor.detach().to_local()  # type: ignore[attr-defined]  # of DTensor
    return local


def divided_like(part: Tensor, whole: Tensor) -> Tensor:
    """Return the tensor that processes hold parts of, as of a parameter; a single number stays."""
    if not is_divided(whole) or part.dim() == 0:
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(whole, DTensor)
    return DTensor.from_local(
        part, whole.device_mesh, whole.placements,
        run_check=False, shape=whole.shape, stride=whole.stride(),
    )  # fmt: skip


def write(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors into a folder: each process what it holds.

    By torch.distributed.checkpoint in its safetensors layout, which writes nothing else.

    Raises:
        OSError: a process cannot write.
    """
    if processes.count() == 1:
        save_file(tensors, folder / WHOLE)
        return
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as failed:
        error, _ = next(iter(failed.failures.values()))
        if isinstance(error, Exception):
            raise OSError(getattr(error, "strerror", None) or str(error)) from error
        raise


def read(folder: Path, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """Read what this process is to hold, however many wrote it.

    Args:
        folder: that `write` has filled.
        like: divided tensors, by name; all others are read whole.
    """
    if processes.count() == 1 and (folder / WHOLE).exists():
        return load_file(folder / WHOLE)
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    found: dict[str, Tensor] = {}
    for name, saved in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(saved, TensorStorageMetadata)
        whole = like.get(name)
        if whole is not None and is_divided(whole) and whole.shape == saved.size:
            found[name] = torch.empty_like(whole)
        else:
            found[name] = torch.empty(saved.size, dtype=saved.properties.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a process alone is alone
        load(dict(found), storage_reader=reader, no_dist=processes.count() == 1)
    return found
