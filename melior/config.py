"""Configs to and from flat mappings and YAML files; no torch, so mistakes come out at once.

Fields of nested option groups stand at the top level, as they do on the command line, and each
goes by its own name, with hyphens for underscores, or by an alias of its command-line option.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

C = TypeVar("C")


def config_to_dict(config: object) -> dict[str, Any]:
    """Return every option of a config by its flat name, as YAML and JSON can hold it."""
    return {name: _plain(value) for name, value in _flat(config).items()}


def config_from_dict(cls: type[C], mapping: Mapping[str, Any], *, where: str = "config") -> C:
    """Build a config from flat options.

    Raises:
        ValueError: an option is unknown (with the nearest right name), missing, of another type
            or out of range, in one sentence that begins with `where`.
    """
    values = config_values(cls, mapping, where=where)
    needed = [leaf.name for leaf in _leaves(cls) if leaf.is_needed and leaf.name not in values]
    if needed:
        found = ", ".join(values) or "nothing"
        raise ValueError(f"{where}: {', '.join(needed)} must be given; found {found}")
    try:
        return _build(cls, values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def config_values(
    cls: type, mapping: Mapping[str, Any], *, where: str = "config"
) -> dict[str, Any]:
    """Return the options in a mapping under their own names, checked; some may be left out.

    Raises:
        ValueError: an option is unknown, given twice, or of another type.
    """
    leaves = {name: leaf for leaf in _leaves(cls) for name in (leaf.name, *leaf.aliases)}
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        name = str(key).replace("-", "_")
        if name not in leaves:
            near = difflib.get_close_matches(name, leaves, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(leaves)}"
            raise ValueError(f"{where}: {str(key)!r} is not an option{hint}")
        leaf = leaves[name]
        if leaf.name in values:
            raise ValueError(f"{where}: {leaf.name} must be given once; found it again as {key!r}")
        try:
            values[leaf.name] = _read(leaf.type, value)
        except ValueError as error:
            raise ValueError(
                f"{where}: {leaf.name} must be {_words(leaf.type)}; found {value!r}{error}"
            ) from error
    return values


def read_config(path: str | Path) -> dict[str, Any]:
    """Read the options in a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, not a mapping of options, or names one twice.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: a config file is needed; found no such file")
    try:
        text = file.read_text(encoding="utf-8-sig")
        node = yaml.compose(text, yaml.SafeLoader)
        mapping = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise ValueError(f"{path}{line}: YAML is needed; found that {problem}") from error
    if mapping is None:
        return {}
    if not isinstance(node, yaml.MappingNode) or not isinstance(mapping, dict):
        raise ValueError(
            f"{path}: options as 'name: value' lines are needed; found {_kind(mapping)}"
        )
    seen: set[str] = set()
    for key, _ in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise ValueError(f"{path}:{line}: {key.value} must be given once; found it again here")
        seen.add(key.value)
    return mapping


def config_arguments(cls: type, words: Sequence[str], *, where: str) -> list[str]:
    """Return command-line words with a `--config FILE` replaced by the options in the file.

    Options that the words name themselves are left out, so that a flag overrides the file.

    Raises:
        ValueError: a word looks like an option and is none, or the file has one that is wrong.
    """
    leaves = {name: leaf for leaf in _leaves(cls) for name in (leaf.name, *leaf.aliases)}
    kept, file = _without_config(words, where)
    given = set[str]()
    for word in kept:
        name = _option(word)
        bare = name.removeprefix("no_") if name.removeprefix("no_") in leaves else name
        if bare and bare not in leaves and bare not in ("help", "h"):
            near = difflib.get_close_matches(bare, leaves, n=1)
            hint = f"; did you mean --{near[0].replace('_', '-')}?" if near else ""
            flag = word.split("=", 1)[0]
            raise ValueError(f"{where}: {flag} is not an option{hint}")
        if bare in leaves:
            given.add(leaves[bare].name)
    if not file:
        return kept
    values = config_values(cls, read_config(file), where=file)
    arguments = []
    for name, value in values.items():
        if name not in given:
            arguments += _as_words(name, _plain(value))
    return [*arguments, *kept]


@dataclass(frozen=True)
class _Leaf:
    """An option: a field that is not itself a group of options."""

    name: str
    groups: tuple[str, ...]
    type: Any
    aliases: tuple[str, ...]
    is_needed: bool


def _leaves(cls: type) -> list[_Leaf]:
    leaves = list(_walk(cls, (), is_optional=False))
    names = [name for leaf in leaves for name in (leaf.name, *leaf.aliases)]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise TypeError(f"{cls.__name__}: option names must differ; found {sorted(twice)} twice")
    return leaves


def _walk(cls: Any, groups: tuple[str, ...], *, is_optional: bool) -> Iterator[_Leaf]:
    for field, kind, extras in _fields(cls):
        has_default = is_optional or _default(field) is not MISSING
        if _is_group(kind):
            yield from _walk(kind, (*groups, field.name), is_optional=has_default)
        else:
            aliases = [a for e in extras for a in getattr(e, "aliases", None) or ()]
            names = tuple(alias.lstrip("-").replace("-", "_") for alias in aliases)
            yield _Leaf(field.name, groups, kind, names, not has_default)


def _fields(cls: Any) -> Iterator[tuple[Field[Any], Any, tuple[Any, ...]]]:
    """Yield each field with its type and what `Annotated` says besides."""
    hints = get_type_hints(cls, include_extras=True)
    for field in fields(cls):
        yield field, *_bare(hints[field.name])


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def _is_group(kind: Any) -> bool:
    return is_dataclass(kind)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    """Make a dataclass of flat values; groups that are not mentioned keep their defaults."""
    given: dict[str, Any] = {}
    for field, kind, _ in _fields(cls):
        if not _is_group(kind):
            given |= {field.name: values[field.name]} if field.name in values else {}
            continue
        inner = {leaf.name for leaf in _leaves(kind)}
        mine = {name: value for name, value in values.items() if name in inner}
        default = _default(field)
        if default is MISSING:
            given[field.name] = _build(kind, mine)
        elif mine:
            given[field.name] = _build(kind, _flat(default) | mine)
    return cls(**given)


def _flat(config: object) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for leaf in _leaves(type(config)):
        value = config
        for name in (*leaf.groups, leaf.name):
            value = getattr(value, name)
        values[leaf.name] = value
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read(kind: Any, value: Any) -> Any:
    """Return a YAML value as the type that a field has.

    Raises:
        ValueError: it is of another type; the text is a hint to the way out, or empty.
    """
    kind, _ = _bare(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, value)
    if origin is Literal:
        return _read_literal(arguments, value)
    if origin is tuple:
        return _read_tuple(arguments, value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        return _read_float(value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    is_text = kind in (str, Path) and isinstance(value, bool | int | float)
    raise ValueError("; put it in quotes" if is_text else "")


def _read_float(value: float | str) -> float:
    """Read a number; YAML takes 5e-7, which has no dot, for text."""
    try:
        return float(value)
    except ValueError:
        raise ValueError("") from None


def _read_union(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in kinds:
        return None
    for kind in (kind for kind in kinds if kind is not type(None)):
        try:
            return _read(kind, value)
        except ValueError:
            continue
    raise ValueError("")


def _read_literal(allowed: tuple[Any, ...], value: Any) -> Any:
    for item in allowed:
        if type(item) is type(value) and item == value:
            return item
    near = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1)
    raise ValueError(f"; did you mean {near[0]!r}?" if near else "")


def _read_tuple(kinds: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    """Read a list, or a single thing as the list of it, as on the command line."""
    items = value if isinstance(value, list | tuple) else [value]
    if kinds[-1] is Ellipsis:
        return tuple(_read(kinds[0], item) for item in items)
    if len(items) != len(kinds):
        raise ValueError("")
    return tuple(_read(kind, item) for kind, item in zip(kinds, items, strict=True))


def _option(word: str) -> str:
    """Return the name of an option, or nothing for another word, such as a negative number."""
    if not word.startswith("--") or len(word) < 3:
        return ""
    return word[2:].split("=", 1)[0].replace("-", "_")


def _without_config(words: Sequence[str], where: str) -> tuple[list[str], str]:
    """Split `--config FILE` off the words."""
    kept, file, rest = [], "", iter(words)
    for word in rest:
        if _option(word) != "config":
            kept.append(word)
            continue
        file = word.split("=", 1)[1] if "=" in word else next(rest, "")
        if not file:
            raise ValueError(f"{where}: --config needs a file; found none")
    return kept, file


def _as_words(name: str, value: Any) -> list[str]:
    """Spell an option of a file as a command line would."""
    flag = f"--{name.replace('_', '-')}"
    if value is True or value is False:
        return [flag if value else f"--no-{name.replace('_', '-')}"]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]


_WORDS = {
    str: "text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _words(kind: Any) -> str:
    """Say a type in words."""
    kind, _ = _bare(kind)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(argument) for argument in arguments)
    if origin is Literal:
        return "one of " + ", ".join(str(argument) for argument in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a list, each {_words(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}: {', '.join(map(_words, arguments))}"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"{value!r}"
