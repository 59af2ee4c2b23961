"""One tiny model of each family for all tests here."""

import pytest

from tests.tiny import tiny_folder

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {family: tiny_folder(folder / family, family) for family in FAMILIES}


@pytest.fixture
def llama(models):
    return models["llama"]
