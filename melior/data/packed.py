"""Groups of token sequences as a few flat tensors, to be kept on disk, and back."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from melior.data.batches import TokenGroup, Tokens


def packed(groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
    """Return groups as tensors, answer after answer, and what is said of each group."""
    answers = [answer for group in groups for answer in group.answers]
    counts = [(len(answer), answer.n_prompt, len(answer.steps)) for answer in answers]
    return {
        "tokens": _joined([answer.tokens for answer in answers], torch.int32),
        "mask": bytes_tensor(b"".join(answer.mask for answer in answers)),
        "steps": _joined([answer.steps for answer in answers], torch.int16),
        "counts": torch.tensor(counts, dtype=torch.int32).reshape(-1, 3),
        "answers": torch.tensor([len(group.answers) for group in groups], dtype=torch.int32),
        "scores": torch.tensor([s for g in groups for s in g.scores], dtype=torch.float64),
        "numbers": torch.tensor(
            [(group.margin, group.weight, group.share) for group in groups], dtype=torch.float64
        ).reshape(-1, 3),
        "prompts": bytes_tensor(b"".join(group.prompt for group in groups)),
        "words": json_tensor([(len(g.prompt), g.subset, g.origin) for g in groups]),
    }


def unpacked(tensors: Mapping[str, Tensor]) -> list[TokenGroup]:
    """Return the groups that `packed` made tensors of."""
    answers, scores = _answers(tensors), iter(tensors["scores"].tolist())
    prompts, at = bytes_of(tensors["prompts"]), 0
    groups = []
    for count, numbers, (length, subset, origin) in zip(
        tensors["answers"].tolist(), tensors["numbers"].tolist(), json_of(tensors["words"]),
        strict=True,
    ):  # fmt: skip
        own = tuple(next(answers) for _ in range(count))
        margin, weight, share = numbers
        groups.append(
            TokenGroup(
                own, tuple(next(scores) for _ in own), margin, weight, subset, origin, share,
                prompts[at : at + length],
            )
        )  # fmt: skip
        at += length
    return groups


def json_tensor(value: object) -> Tensor:
    """Return a value as the bytes of its JSON."""
    return bytes_tensor(json.dumps(value).encode())


def json_of(tensor: Tensor) -> Any:
    """Return the value that `json_tensor` was given, with lists for tuples."""
    return json.loads(bytes_of(tensor))


def bytes_tensor(data: bytes) -> Tensor:
    """Return bytes as a tensor."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else _nothing(torch.uint8)


def bytes_of(tensor: Tensor) -> bytes:
    """Return the bytes that a tensor holds."""
    return tensor.numpy().tobytes()


def _answers(tensors: Mapping[str, Tensor]) -> Iterator[Tokens]:
    tokens, steps = array("i"), array("H")
    tokens.frombytes(bytes_of(tensors["tokens"]))
    steps.frombytes(bytes_of(tensors["steps"]))
    mask, counts = bytes_of(tensors["mask"]), tensors["counts"].tolist()
    ends = accumulate(length for length, _, _ in counts)
    step_ends = accumulate(n_steps for _, _, n_steps in counts)
    for (length, n_prompt, n_steps), end, step_end in zip(counts, ends, step_ends, strict=True):
        rows = slice(end - length, end)
        own = steps[step_end - n_steps : step_end]
        yield Tokens(tokens[rows], mask[rows], n_prompt, own)


def _joined(arrays: Sequence[array[int]], dtype: torch.dtype) -> Tensor:
    data = bytearray().join(arrays)
    return torch.frombuffer(data, dtype=dtype) if data else _nothing(dtype)


def _nothing(dtype: torch.dtype) -> Tensor:
    return torch.zeros(0, dtype=dtype)
