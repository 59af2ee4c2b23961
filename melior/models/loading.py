"""Models from a folder or a name, and back into an ordinary Hugging Face folder."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig

from melior.data.chat import ChatFormat
from melior.models.language import LanguageModel
from melior.models.names import EMBEDDED, adapter_base, find
from melior.models.packed import pack
from melior.models.sharding import computed_dtype, mesh_of, whole_state
from melior.options import ModelOptions
from melior.training import processes
from melior.training.memory import share_freed_memory

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def load(options: ModelOptions, *, trainable: bool, seed: int = 0) -> LanguageModel:
    """Load a causal LM with its tokenizer and chat format.

    Where processes share the work, each holds a part of its weights in the end.

    For training in bfloat16, float32 originals of the weights are kept as masters where the
    checkpoint has more than bfloat16 to give. A folder that holds an adapter is loaded as its
    base model with the adapter folded in.

    Args:
        options: which model, and how it is held.
        trainable: it will be trained: wholly, or a new adapter where `lora_r` is given.
        seed: of a new adapter.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: what is there is not a causal LM, or its options do not fit it.
    """
    device = device_of(options.device)  # a wrong one is said before weights are read
    if processes.count() == 1:
        return _loaded(options, trainable=trainable, seed=seed)
    mesh = mesh_of(device)
    with processes.in_turn():
        model = _loaded(replace(options, device="cpu"), trainable=trainable, seed=seed)
        model.divide(mesh)
    model.start_hash = processes.from_first(lambda: model.start_hash)
    return model


def load_to_answer(options: ModelOptions) -> LanguageModel:
    """Load a model that draws answers: it computes what others do, but faster a token at a time.

    Its linear layers may be packed, so it is neither trained nor saved. Raises what `load` does.
    """
    model = load(options, trainable=False)
    pack(model.model)
    return model


def _loaded(options: ModelOptions, *, trainable: bool, seed: int) -> LanguageModel:
    folder = folder_of(options.model)
    is_learned = trainable and not options.lora_r
    dtype = "fp32" if is_learned else options.dtype  # what is not learned needs no masters
    model = _folded(folder, options) or _pretrained(folder, options, dtype)
    model, masters = held(model, options, trainable=trainable, seed=seed)
    return LanguageModel(model, load_chat(options), masters=masters, padded=options.padded)


def held(
    model: nn.Module, options: ModelOptions, *, trainable: bool, seed: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Hold float32 weights as the options say, maybe in an adapter; return the masters, too."""
    forget_dropout(model)
    masters: dict[str, Tensor] = {}
    if options.dtype == "bf16":
        if trainable and not options.lora_r:
            masters = _masters(model)
        _round(model)
    model.requires_grad_(trainable)
    if trainable and options.lora_r:
        model = with_adapter(model, options, seed)
    model.to(device_of(options.device))
    model.train(trainable and options.lora_dropout > 0)
    return model, masters


def load_chat(options: ModelOptions) -> ChatFormat:
    """Load only the tokenizer and chat format of a model."""
    from transformers import AutoTokenizer, GenerationConfig

    folder = folder_of(options.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **hub(options))
    except (
        Exception
    ) as error:  # tokenizers raises bare exceptions, too, of files that it cannot read
        raise ValueError(
            f"{options.model}: its tokenizer does not load; {_first(error)}"
        ) from error
    stops: list[int] = []
    if not isinstance(folder, Path) or (folder / "generation_config.json").exists():
        try:
            eos = GenerationConfig.from_pretrained(folder, **hub(options)).eos_token_id
        except OSError:  # a hub model without generation config ends with the tokenizer's token
            eos = None
        stops = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ChatFormat(tokenizer, options.chat_template, stop_token_ids=stops)


def folder_of(name: str) -> Path | str:
    """Return where a model is loaded from, the embedded one made if need be."""
    found = find(name)
    if found != EMBEDDED:
        return found
    from melior.models.embedded import embedded_folder

    return embedded_folder()


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write an ordinary Hugging Face folder: whole weights, or the adapter that was trained."""
    write_folder(model.model, model.core.config, folder)
    if processes.is_first():
        model.chat.tokenizer.save_pretrained(str(folder))


def write_folder(model: nn.Module, config: PreTrainedConfig, folder: Path) -> None:
    """Write weights and config so that other programs find nothing of ours in them.

    Processes that hold parts of the weights must all come here; the first one writes.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    options, dtype = _put_together(model) if processes.count() > 1 else ({}, None)
    if not processes.is_first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = config._attn_implementation
    config._attn_implementation = None  # ours is no word that other programs know
    config.use_cache = True
    try:
        with _quiet():
            model.save_pretrained(str(folder), **options)  # type: ignore[operator]
        if dtype:  # what transformers took from the parts of the weights
            config.dtype = dtype
            config.save_pretrained(str(folder))
    finally:
        config._attn_implementation = name
        config.use_cache = False


def _put_together(model: nn.Module) -> tuple[dict[str, Any], torch.dtype | None]:
    """Return the weights of a divided model to be written, and their type where it is another's."""
    if hasattr(model, "peft_config"):
        return {"state_dict": whole_state(model, only_trained=True)}, None
    dtype = computed_dtype(model)
    return {"state_dict": whole_state(model, dtype=dtype)}, dtype


def merge(source: Path, out: Path, *, dtype: str = "bf16") -> None:
    """Fold an adapter into its base model and save the whole.

    Raises:
        ValueError: there is no adapter in the folder.
        FileExistsError: the folder to write holds something.
    """
    if not adapter_base(source):
        raise ValueError(f"{source}: needs an adapter (adapter_config.json); found none")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out}: needs to be new or empty; found files in it")
    options = ModelOptions(model=str(source), dtype="fp32", device="cpu")
    loaded = load(options, trainable=False)
    loaded.model.to(DTYPES[dtype])
    save_model(loaded, out)
    card = source / "README.md"
    if card.exists():
        whole = card.read_text(encoding="utf-8").replace(
            "library_name: peft", "library_name: transformers"
        )
        whole = whole.replace(
            "from peft import AutoPeftModel", "from transformers import AutoModel"
        )
        (out / "README.md").write_text(
            whole.replace("AutoPeftModel", "AutoModel"), encoding="utf-8"
        )


def _pretrained(source: Path | str, options: ModelOptions, dtype: str = "fp32") -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    with reading(options, "a causal language model"):
        config = AutoConfig.from_pretrained(source, **hub(options))
    classifiers = [one for one in config.architectures or () if one.endswith(_CLASSIFIER)]
    if classifiers:  # transformers would draw the missing output layer at random, and log a line
        raise ValueError(
            f"{options.model}: a language model is needed; found a reward model"
            f" ({classifiers[0]}), which gives scores and no words; it scores with"
            " melior score --with"
        )
    with reading(options, "a causal language model"):
        model, about = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **weights(options, dtype)
        )
    if about["missing_keys"]:
        raise ValueError(
            f"{options.model}: a language model needs all its weights; found none for"
            f" {', '.join(sorted(about['missing_keys'])[:4])}"
        )
    return model


_CLASSIFIER = "ForSequenceClassification"
"""How the names of architectures end that have scores for an output."""


@contextmanager
def reading(options: ModelOptions, kind: str) -> Iterator[None]:
    """Inside, weights are read; what goes wrong is said in one sentence."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # weights load in a moment, or melior says that they do not
    share_freed_memory()  # weights are read in threads of their own
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{options.model}: cannot be loaded as {kind}; {_first(error)}"
            + (
                ""
                if isinstance(folder_of(options.model), Path)
                else f"; where no hub can be reached, give a folder or {EMBEDDED!r}"
            )
        ) from error


def config_of(options: ModelOptions) -> PreTrainedConfig:
    """Return a model's config, an adapter's base model's, before any weights load.

    Raises:
        ValueError: it does not load.
    """
    from transformers import AutoConfig

    source = folder_of(options.model)
    if base := adapter_base(source):
        source = folder_of(base)
    try:
        return AutoConfig.from_pretrained(source, **hub(options))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{options.model}: its config does not load; {_first(error)}") from error


def n_positions(options: ModelOptions) -> int:
    """Return how many tokens a model can take in; its config says so, before any weights load."""
    config = config_of(options).get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def hub(options: ModelOptions) -> dict[str, Any]:
    """Return what a model is fetched from a hub with."""
    return {"revision": options.revision, "trust_remote_code": options.trust_remote_code}


def weights(options: ModelOptions, dtype: str = "fp32") -> dict[str, Any]:
    """Return how weights are read, never from a pickle, which may run code.

    Those of a checkpoint in bfloat16 that are read as such stay in the file until they are needed.
    """
    return hub(options) | {"dtype": DTYPES[dtype], "use_safetensors": True}


def _first(error: BaseException) -> str:
    """Return an error's first line, or all where that ends in a colon, without its traceback."""
    first, *rest = (str(error).strip() or type(error).__name__).splitlines()
    return " ".join([first, *rest] if first.rstrip().endswith(":") else [first])[:300]


def device_of(name: str) -> torch.device:
    """Return a device that works here.

    Raises:
        ValueError: it does not.
    """
    if name == "auto" and torch.cuda.is_available():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    elif name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {name!r}: needs to be one that torch can use here; {_first(error)};"
            " use auto or cpu"
        ) from error


def _folded(folder: Path | str, options: ModelOptions) -> nn.Module | None:
    """Return the base model of an adapter folder with the adapter folded in."""
    base = adapter_base(folder)
    if not base:
        return None
    if options.lora_r:
        raise ValueError(
            f"{folder}: a new adapter needs a whole model to stand on; found an adapter;"
            " run melior merge first"
        )
    from peft import PeftModel

    named = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    base_options = replace(options, revision=named.get("revision") or options.revision)
    model = _pretrained(folder_of(base), base_options)
    if not (Path(folder) / "adapter_model.safetensors").exists():  # peft would open a pickle
        raise ValueError(f"{folder}: an adapter needs adapter_model.safetensors; found none")
    with _quiet(), reading(options, "an adapter"):
        return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()


def with_adapter(model: nn.Module, options: ModelOptions, seed: int) -> nn.Module:
    """Return a model with a new LoRA adapter, which alone is to be trained."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha or 2 * options.lora_r,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_target_modules) or "all-linear",
        # A reward model's head is trained as it is; naming it where there is none makes peft warn.
        exclude_modules=["score"] if hasattr(model, "score") else None,
        task_type="CAUSAL_LM" if model.can_generate() else None,  # type: ignore[operator]
    )
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        try:
            wrapped = get_peft_model(model, config)
        except ValueError as error:
            raise ValueError(
                f"lora_target_modules must name linear layers of {options.model}, which are"
                f" {', '.join(_linear_layers(model))}; found {_first(error)}"
            ) from error
    base = folder_of(options.model)
    # A folder's own place, so that the adapter is found from everywhere.
    named = str(base.resolve()) if isinstance(base, Path) else base
    wrapped.peft_config["default"].base_model_name_or_path = named
    wrapped.peft_config["default"].revision = options.revision
    return wrapped


def _linear_layers(model: nn.Module) -> list[str]:
    """Return the last parts of the names of a model's linear layers, GPT-2's own kind included."""
    kinds = ("Linear", "Conv1D")
    found = (name for name, one in model.named_modules() if type(one).__name__ in kinds)
    return sorted({name.split(".")[-1] for name in found})


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what peft and transformers say to their own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _masters(model: nn.Module) -> dict[str, Tensor]:
    """Return float32 originals of the weights that bfloat16 would round."""
    named = model.named_parameters()
    return {
        name: p.detach().clone()
        for name, p in named
        if not torch.equal(p, p.to(torch.bfloat16).to(p.dtype))
    }


def _round(model: nn.Module) -> None:
    """Round weights alone: buffers stay in float32, as where transformers reads bfloat16.

    Rotary positions are made of one. With frequencies in bfloat16 a token a few hundred places on
    would be turned by a radian too much or too little.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)


def forget_dropout(model: nn.Module) -> None:
    """Set the base model's own dropout to 0: log-probabilities must mean one thing."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
