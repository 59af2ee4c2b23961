"""A tiny model and rows that are the same wherever they are made: no random numbers."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML that ends with its end token, so that nobody has to decide whether what follows counts."""
WORDS = ("fox", "dog", "capital", "Paris", "hello", "thank", "quick", "lazy")


def steady_folder(path: Path) -> Path:
    """Save a tiny Llama whose weights are a sine of their place, and a tokenizer of bytes."""
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, start = LlamaForCausalLM(config).float(), 0
    with torch.no_grad():
        for parameter in model.parameters():
            places = torch.arange(start, start + parameter.numel(), dtype=torch.float64)
            start += parameter.numel()
            if parameter.dim() > 1:
                wave = 0.25 * torch.sin(0.37 * places + 0.11 * torch.sin(1.7 * places) * places)
                parameter.copy_(wave.reshape(parameter.shape))
    model.save_pretrained(path)
    steady_tokenizer().save_pretrained(path)
    return path


def steady_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*special, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


def steady_pairs(folder: Path) -> Path:
    """Write eight pairs as messages, of several lengths, into a folder's `train.jsonl`."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"what is the {WORDS[i]} of {WORDS[-i]}?"}],
            "chosen": says(f"the {WORDS[(3 * i + 1) % 8]} is {'very ' * (i % 3)}quick"),
            "rejected": says(f"{'no ' * (i % 4)}lazy {WORDS[(5 * i + 2) % 8]}"),
        }
        for i in range(8)
    ]
    return written(folder, rows)


def steady_answers(folder: Path) -> Path:
    """Write the answers of the same pairs apart, each good or bad."""
    pairs = steady_pairs(folder).joinpath("train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in map(json.loads, pairs)
        for side in ("chosen", "rejected")
    ]
    return written(folder, rows)


def says(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def written(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder
