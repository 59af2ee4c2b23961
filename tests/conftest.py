"""Shapes are checked at run time in tests; nothing reaches for a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("melior", "tests.checked")

settings.register_profile("melior", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("melior")


@pytest.fixture
def model_folder(tmp_path):
    from tests.tiny import tiny_folder

    return tiny_folder(tmp_path / "tiny-llama")
