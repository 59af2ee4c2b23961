"""PairwiseModel: a causal LM that names the better of two answers to a prompt by one letter.

A saved one is an ordinary causal LM, so that other programs read the same probabilities of `A` and
`B` behind the same words; `melior.json` beside it says which words these are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from melior.data.forest import Forest, Marked, filled, plant
from melior.data.pairwise import NAME, Comparisons, template_hash
from melior.data.portions import portions
from melior.models.language import LanguageModel
from melior.models.loading import load, save_model
from melior.models.names import KIND_FILE, find, kind_of
from melior.options import ModelOptions
from melior.training.run import write_json

KIND = "pairwise"


class PairwiseModel:
    """A causal LM with the words in which it is asked.

    Args:
        language: the model.
        is_fresh: nothing has trained it to say letters.

    Raises:
        ValueError: it has no chat template, or a letter is not one token behind it.
    """

    def __init__(self, language: LanguageModel, *, is_fresh: bool = False) -> None:
        self.language = language
        self.is_fresh = is_fresh
        self.comparisons = Comparisons(language.chat)
        self.masters = language.masters
        self.padded_because = language.padded_because
        """Why sequences are computed under padding; empty where the forest is exact."""

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model, inside its adapter if it has one."""
        return self.language.core

    @property
    def start_hash(self) -> str:
        """A fingerprint of what is computed, adapters left out; taken before training."""
        return self.language.start_hash

    @property
    def longest(self) -> int:
        """How many tokens the model can take in."""
        config = self.language.core.config.get_text_config()
        return int(getattr(config, "max_position_embeddings", None) or 2**31)

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        self.language.checkpoint_activations()

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training may change, by name."""
        return self.language.trainable()

    def letters(self, forest: Forest) -> Float[Tensor, "n 2"]:
        """Return the log-probabilities of both letters behind each sequence, a question."""
        hidden = self.language.hidden(forest, forest.last).repeat_interleave(2, dim=0)
        letters = torch.tensor(self.comparisons.labels, device=hidden.device).repeat(forest.n)
        return self.language.output.log_probs(hidden, letters).unflatten(0, (forest.n, 2))

    def said(self, forest: Forest) -> Float[Tensor, " n"]:
        """Return the log-probability of each sequence's last token, the letter behind it."""
        lengths = [len(forest.rows(i)) for i in range(forest.n)]
        before = torch.tensor([forest.row(i, n - 2) for i, n in enumerate(lengths)])
        hidden = self.language.hidden(forest, before)
        return self.language.output.log_probs(hidden, forest.tokens[forest.last].to(hidden.device))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, nothing is random and no gradient is kept: an adapter's dropout is off."""
        with self.language.evaluating():
            yield


@torch.no_grad()
def letter_logits(
    model: PairwiseModel, groups: Sequence[Sequence[Marked]], *, max_tokens: int
) -> list[Float[Tensor, " _"]]:
    """Return, for each question, the logit that it is answered by A, on the CPU in float64.

    Args:
        model: whom to ask.
        groups: of questions that begin alike, up to before the letter.
        max_tokens: computed at once; one group alone may exceed them.
    """
    found = [torch.zeros(0, dtype=torch.float64) for _ in groups]
    for part in portions(groups, max_tokens):
        forest = filled(plant([question for i in part for question in groups[i]]), max_tokens)
        with model.evaluating():
            letters = model.letters(forest).double().cpu()
        logits = letters[:, 0] - letters[:, 1]
        for i, own in zip(part, logits.split([len(groups[i]) for i in part]), strict=True):
            found[i] = own
    return found


def load_pairwise_model(options: ModelOptions, *, trainable: bool, seed: int = 0) -> PairwiseModel:
    """Load a pairwise model, or a causal LM that is to become one.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: what is there is no causal LM, is a reward model of another kind, or one that
            was trained on other words.
    """
    folder = find(options.model)
    path = Path(folder) / KIND_FILE
    is_fresh = not (isinstance(folder, Path) and path.exists())
    if not is_fresh:
        _check(path, kind_of(options.model))
    return PairwiseModel(load(options, trainable=trainable, seed=seed), is_fresh=is_fresh)


def save_pairwise_model(model: PairwiseModel, folder: Path) -> None:
    """Write a folder that `AutoModelForCausalLM` loads, an adapter folded in.

    After this the model in memory is the one in the folder: an adapter is no longer apart.
    """
    language = model.language
    if language.has_adapter:
        dtype = language.core.dtype
        language.model.float()  # the sum of weights and adapter is rounded once
        whole = language.model.merge_and_unload().to(dtype)  # type: ignore[operator]  # of peft
        padded = bool(language.padded_because)
        model.language = language = LanguageModel(whole, language.chat, padded=padded)
    save_model(language, folder)
    write_json(folder / KIND_FILE, {"kind": KIND, "template": NAME, "hash": template_hash()})


def _check(path: Path, kind: str) -> None:
    if kind != KIND:
        raise ValueError(
            f"{path}: a pairwise model begins as a language model or a pairwise one; found a reward"
            f" model of kind {kind!r}"
        )
    known = json.loads(path.read_text(encoding="utf-8")).get("hash")
    if known != template_hash():
        raise ValueError(
            f"{path}: a pairwise model must be asked in the words it was trained on, the template"
            f" {NAME} {template_hash()}; found {known!r}; train it again, or take the version of"
            " melior that wrote it"
        )
