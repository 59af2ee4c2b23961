"""RewardModel: any transformers causal model with a head that says how good an answer is.

What the head says is read at an answer's last token, its end token: one number, or several that
have names. A saved one is an ordinary sequence classifier with these labels, so that other programs
read the same numbers from its folder: transformers takes a row's last token that is no padding,
which is why padding must never end an answer, and why the saved chat template writes nothing after
the end token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from melior.data.chat import ChatFormat
from melior.data.forest import Forest, Marked, filled, plant
from melior.data.portions import divided, portions
from melior.models.language import fingerprint
from melior.models.layout import evaluating, forest_hidden, padded_hidden, plug_in
from melior.models.loading import (
    device_of,
    folder_of,
    held,
    load_chat,
    reading,
    weights,
    write_folder,
)
from melior.models.names import adapter_base
from melior.options import ModelOptions
from melior.records import Turn

REWARD = ("reward",)
"""The label of a head that says one number."""
PAD = "[PAD]"
"""Added where a tokenizer has no token that could fill up rows without ending an answer."""
ASKED = (Turn("user", "melior asks"),)
ANSWERED = (Turn("assistant", "melior answers"),)


class RewardModel:
    """A sequence classifier of transformers, and its chat format.

    Args:
        model: of transformers, or a peft model around one.
        chat: how conversations become its tokens.
        masters: float32 originals of weights that are held in bfloat16, by parameter name.
        is_fresh: the head was drawn at random, so that rewards mean nothing yet.
        padded: compute each sequence in a row of its own, even where a forest would be exact.
    """

    def __init__(
        self,
        model: nn.Module,
        chat: ChatFormat,
        *,
        masters: Mapping[str, Tensor] | None = None,
        is_fresh: bool = False,
        padded: bool = False,
    ) -> None:
        self.model = model
        self.chat = chat
        self.masters = dict(masters or {})
        self.is_fresh = is_fresh
        self.padded_because = "as --padded asks" if padded else plug_in(self.core)
        """Why sequences are computed one by one under padding; empty where the forest is exact."""

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model, inside its adapter if it has one."""
        return self.model.get_base_model() if self.has_adapter else self.model  # type: ignore

    @property
    def has_adapter(self) -> bool:
        """Whether, besides the head, only an adapter is trained."""
        return hasattr(self.model, "peft_config")

    @cached_property
    def start_hash(self) -> str:
        """A fingerprint of what is computed, adapters left out; taken before training."""
        return fingerprint(self.model, self.core.config)

    @property
    def identity(self) -> dict[str, str]:
        """What the rewards come from: hashes of weights, as they are held, and chat format."""
        weights = fingerprint(self.model, self.core.config)
        return {"weights": weights[:16], "chat": self.chat.hash[:16]}

    @property
    def longest(self) -> int:
        """How many tokens the model can take in."""
        return int(getattr(self.core.config, "max_position_embeddings", 0) or 2**31)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        self.model.train()
        self.core.gradient_checkpointing_enable({"use_reentrant": False})
        if self.has_adapter:
            self.core.enable_input_require_grads()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training may change, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def rewards(self, forest: Forest) -> Float[Tensor, " n"]:
        """Return the reward of each sequence, where the head says one number."""
        return self.outputs(forest).squeeze(-1)

    def outputs(self, forest: Forest) -> Float[Tensor, "n m"]:
        """Return what the head says at each sequence's last token, in float32 or wider."""
        return self.read(self.hidden(forest, forest.last))

    def read(self, hidden: Float[Tensor, "r d"]) -> Float[Tensor, "r m"]:
        """Return what the head says of hidden states."""
        return self.core.score(hidden.to(self.core.score.weight.dtype))

    def hidden(self, forest: Forest, rows: Int[Tensor, " r"]) -> Float[Tensor, "r d"]:
        """Return the last hidden state of rows of a forest."""
        compute = padded_hidden if self.padded_because else forest_hidden
        return compute(self.core, forest, rows)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, nothing is random and no gradient is kept: an adapter's dropout is off."""
        with evaluating(self.model):
            yield


def outputs_of(
    model: RewardModel,
    groups: Sequence[Sequence[Marked]],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Float[Tensor, "_ m"]]:
    """Return what the head says of each group's answers to one prompt, on the CPU in float64.

    Args:
        model: the reward model.
        groups: in any order; those of like length are computed together, a prompt once a group,
            or as often as it takes to stay within the tokens.
        max_tokens: computed at once; one answer alone may exceed them.
        on_progress: told how many groups are done.
    """
    owners, parts = divided(groups, max_tokens)
    found = [torch.zeros(0, model.core.num_labels, dtype=torch.float64) for _ in parts]
    left, done = Counter(i for i, part in zip(owners, parts, strict=True) if part), 0
    for together in portions(parts, max_tokens):
        answers = [answer for place in together for answer in parts[place]]
        forest = filled(plant(answers), max_tokens)
        with model.evaluating():
            outputs = model.outputs(forest).double().cpu()
        sizes = [len(parts[place]) for place in together]
        for place, own in zip(together, outputs.split(sizes), strict=True):
            found[place] = own
            left[owners[place]] -= 1
            done += not left[owners[place]]
        on_progress(done)
    whole: list[list[Tensor]] = [[] for _ in groups]
    for i, own in zip(owners, found, strict=True):
        whole[i].append(own)
    return [torch.cat(own) for own in whole]


def rewards_of(
    model: RewardModel,
    groups: Sequence[Sequence[Marked]],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Float[Tensor, " _"]]:
    """Return the rewards of each group's answers, where the head says one number."""
    found = outputs_of(model, groups, max_tokens=max_tokens, on_progress=on_progress)
    return [own.squeeze(-1) for own in found]


def load_reward_model(
    options: ModelOptions, *, trainable: bool, seed: int = 0, labels: Sequence[str] = REWARD
) -> RewardModel:
    """Load a reward model, or a causal LM that is to become one, under a fresh head.

    The head is always held in float32: it is small, and so are differences of rewards. A fresh
    one is drawn with the variance 1 / (d + 1), as by Stiennon et al. 2020, arXiv 2009.01325.

    Args:
        options: which model, and how it is held.
        trainable: it will be trained: wholly, or a new adapter where `lora_r` is given.
        seed: of a fresh head and of a new adapter.
        labels: what the numbers are called that the head says; a saved one must have as many.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: what is there cannot be a reward model, or its options do not fit it.
    """
    device_of(options.device)  # a wrong one is said before weights are read
    model, is_fresh = _classifier(options, labels, seed)
    chat = reward_chat(options)
    _fit_padding(model, chat)
    head = model.score.weight.detach().clone()
    wrapped, masters = held(model, options, trainable=trainable, seed=seed)
    model.score.float()
    with torch.no_grad():
        model.score.weight.copy_(head)
    model.score.requires_grad_(trainable)
    masters = {name: value for name, value in masters.items() if name != "score.weight"}
    return RewardModel(wrapped, chat, masters=masters, is_fresh=is_fresh, padded=options.padded)


def reward_chat(options: ModelOptions) -> ChatFormat:
    """Load only the tokenizer and chat format of a reward model.

    Its padding token ends no answer, and its chat template writes nothing after the end token,
    so that the last token that other programs see is the one at which rewards are read.
    """
    chat = load_chat(options)
    tokenizer = chat.tokenizer
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in chat.stop_token_ids:
        padding = _padding(tokenizer, chat.stop_token_ids)
        tokenizer.add_special_tokens({"pad_token": padding})
    source = tokenizer.chat_template
    tokenizer.chat_template = _ending_at_once(source) if isinstance(source, str) else source
    template = "plain" if options.chat_template == "plain" else "auto"
    closed = ChatFormat(tokenizer, template, stop_token_ids=chat.stop_token_ids)
    if _reads_alike(closed):
        return closed
    tokenizer.chat_template = source
    return ChatFormat(tokenizer, template, stop_token_ids=chat.stop_token_ids)


def save_reward_model(model: RewardModel, folder: Path) -> None:
    """Write a folder that `AutoModelForSequenceClassification` loads, an adapter folded in.

    After this the model in memory is the one in the folder: an adapter is no longer apart.
    """
    if model.has_adapter:
        dtype = model.core.dtype
        head = model.core.score.weight.detach().clone()
        model.model.float()  # the sum of weights and adapter is rounded once
        model.model = model.model.merge_and_unload()  # type: ignore[operator]  # of peft
        model.model.to(dtype)
        model.core.score.float()
        with torch.no_grad():
            model.core.score.weight.copy_(head)
    write_folder(model.core, model.core.config, folder)
    model.chat.tokenizer.save_pretrained(str(folder))


def _classifier(
    options: ModelOptions, labels: Sequence[str], seed: int
) -> tuple[PreTrainedModel, bool]:
    """Read a sequence classifier in float32; say whether its head is fresh."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    folder = folder_of(options.model)
    if adapter_base(folder):
        raise ValueError(
            f"{options.model}: a reward model needs a whole model to stand on; found an adapter;"
            " run melior merge first"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that the head is fresh is no surprise
    try:
        with reading(options, "a reward model"), torch.random.fork_rng():
            model, about = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=len(labels), output_loading_info=True, **weights(options)
            )
    finally:
        logging.set_verbosity(verbosity)
    missing = set(about["missing_keys"])
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or missing - {"score.weight"}:
        raise ValueError(
            f"{options.model}: a reward model needs all weights but those of its head, a linear"
            f" layer 'score'; found {type(model).__name__}, which lacks"
            f" {', '.join(sorted(missing - {'score.weight'})[:4]) or 'such a head'}"
        )
    if missing:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            head.weight.normal_(0, 1 / math.sqrt(head.in_features + 1), generator=draw)
    # No sigmoid or softmax in other programs' pipelines, and labels with names.
    model.config.problem_type = "regression"
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    return model, bool(missing)


def _fit_padding(model: PreTrainedModel, chat: ChatFormat) -> None:
    """Tell the model's config the padding token, and give a new one a row of zeros."""
    tokenizer = chat.tokenizer
    assert tokenizer.pad_token_id is not None  # reward_chat has seen to it
    if tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
        with torch.random.fork_rng():
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[tokenizer.pad_token_id].zero_()
    model.config.pad_token_id = tokenizer.pad_token_id


def _padding(tokenizer: PreTrainedTokenizerBase, stops: frozenset[int]) -> str:
    """Return a special token that ends no answer, best one made for padding, or a new one."""
    added = tokenizer.added_tokens_decoder.items()
    known = [token.content for i, token in sorted(added) if token.special and i not in stops]
    return min(known, key=lambda word: "pad" not in word.lower(), default=PAD)


def _ending_at_once(source: str) -> str:
    """Return a chat template that writes no white space after an answered conversation."""
    if source.startswith(_HEAD):
        return source
    return f"{_HEAD}{source.removesuffix(chr(10))}{_TAIL}"


_HEAD = "{% set written %}"
_TAIL = "{% endset %}{{ written if add_generation_prompt else written.rstrip() }}"


def _reads_alike(chat: ChatFormat) -> bool:
    """Say whether the tokenizer's own way to write a conversation gives the tokens of ours."""
    if chat.tokenizer.chat_template is None:
        return True
    turns = [{"role": turn.role, "content": turn.content} for turn in (*ASKED, *ANSWERED)]
    text = chat.tokenizer.apply_chat_template(turns, tokenize=False)
    tokens = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(tokens) == chat.encode(ASKED, ANSWERED).tokens
