"""What a model that melior loads has in common with one that transformers loads."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from melior.models.loading import load
from melior.options import ModelOptions
from tests.tiny import tiny_folder


@pytest.mark.parametrize("trainable", [True, False], ids=["learned", "read as bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_bfloat16_rounds_what_transformers_rounds(family, trainable, tmp_path):
    folder = tiny_folder(tmp_path / family, family)
    options = ModelOptions(model=str(folder), dtype="bf16", device="cpu")
    ours = load(options, trainable=trainable).model
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    for kind in ("named_parameters", "named_buffers"):
        wanted = dict(getattr(theirs, kind)())
        assert wanted.keys() == dict(getattr(ours, kind)()).keys()
        for name, tensor in getattr(ours, kind)():
            # Gemma's own code rounds the one buffer that transformers holds in bfloat16.
            assert torch.equal(tensor.to(wanted[name].dtype), wanted[name]), name
