"""Tiny real models and tokenizers that tests make for themselves."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "user assistant system what is the capital of France? Paris is the capital.",
    "hello there, how are you today? I am fine, thank you!",
]


def tiny_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of about 320 tokens: every text can be encoded and decoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if template else "<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    fast.chat_template = template
    return fast


SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
WINDOW = {"sliding_window": 6}
"""Shorter than the paths of tests."""
PLAIN = {k: v for k, v in SMALL.items() if k not in {"num_key_value_heads", "head_dim"}}
ROUTED = {"num_experts_per_tok": 2}
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("llama", SMALL | {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", SMALL),
    "qwen3": ("qwen3", SMALL),
    "mistral": ("mistral", SMALL | WINDOW),
    "gemma2": (
        "gemma2", SMALL | WINDOW | {"query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": (
        "gemma3_text",
        SMALL | WINDOW | {"query_pre_attn_scalar": 8,
                          "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt2": ("gpt2", {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gpt_neox": ("gpt_neox", PLAIN),
}  # fmt: skip
"""Whose attention follows a forest, with learned and rotary positions, windows and caps."""
EXPERTS: dict[str, tuple[str, dict[str, object]]] = {
    "mixtral": ("mixtral", SMALL | ROUTED | {"num_local_experts": 4}),
    "qwen3_moe": ("qwen3_moe", SMALL | ROUTED | {"num_experts": 4, "moe_intermediate_size": 24}),
}
"""The same, but their experts refuse float64."""
PADDED: dict[str, tuple[str, dict[str, object]]] = {
    "lfm2": ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}),
    "falcon_h1": (
        "falcon_h1",
        SMALL | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1,
                 "mamba_d_state": 8, "lm_head_multiplier": 0.5},
    ),
    "mamba": (
        "mamba", {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        SMALL | {"lru_width": 32, "attention_window_size": 6, "num_hidden_layers": 3},
    ),
    "falcon": ("falcon", {k: v for k, v in PLAIN.items() if k != "intermediate_size"}),
    "gpt_oss": (
        "gpt_oss",
        SMALL | ROUTED | WINDOW | {"num_local_experts": 4,
                                   "layer_types": ["sliding_attention", "full_attention"],
                                   "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
}  # fmt: skip
"""Which fall back to one sequence a row: they mix neighbours, do not ask, or ask for more."""


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """Return a random model of under 100,000 parameters."""
    kind, settings = (FAMILIES | EXPERTS | PADDED)[family]
    settings = settings | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2} | changes
    config = AutoConfig.for_model(kind, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        # Larger weights than a fresh start's, so that attention is far from uniform.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tiny_folder(path: Path, family: str = "llama", template: str | None = CHATML) -> Path:
    """Save a tiny model with its tokenizer as an ordinary Hugging Face folder."""
    tiny_model(family).save_pretrained(path)
    tiny_tokenizer(template).save_pretrained(path)
    return path
