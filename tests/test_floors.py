"""Imports run down the floors only; this is the arrow test of docs/architecture.md."""

import ast
from pathlib import Path

import melior

ROOT = Path(melior.__file__).parent
FLOORS = {
    "cli": 8,
    "recipes": 7,
    "commands": 7,
    "objectives": 6.5,
    "report": 6.3,
    "claims": 6.2,
    "stages": 6,
    "rewards": 5,
    "sampling": 5,
    "models": 4,
    "workers": 4,
    "envs": 4,
    "losses": 3,
    "training": 3,
    "evaluation": 3,
    "selection": 3,
    "data": 2,
    "records": 1,
    "types": 1,
    "ops": 1,
    "intervals": 1,
    "correlation": 1,
    "checks": 1,
    "options": 1,
    "own": 1,
    "config": 1,
}
FREE = {"__init__", "__main__"}


def imports(path: Path) -> set[str]:
    """Every melior module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return {name for name in found if name.startswith("melior.")}


def room(module: str) -> str:
    return module.split(".")[1].removesuffix(".py")


def rows() -> list[tuple[str, str, str]]:
    result = []
    for path in sorted(ROOT.rglob("*.py")):
        relative = path.relative_to(ROOT)
        own = relative.parts[0].removesuffix(".py")
        if own in FREE:
            continue
        result += [(str(relative), own, name) for name in imports(path) if room(name) not in FREE]
    return result


def test_every_room_has_a_floor():
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        assert own in FLOORS or own in FREE, f"{path}: give {own} a floor"


def test_imports_run_down_the_floors():
    wrong = []
    for path, own, name in rows():
        other = room(name)
        is_up = FLOORS.get(other, 0) > FLOORS[own]
        is_sideways = FLOORS.get(other, 0) == FLOORS[own] and other != own and FLOORS[own] > 1
        if is_up or is_sideways:
            wrong.append(f"{path} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_recipes_never_import_each_other():
    wrong = [f"{path}: {name}" for path, own, name in rows() if own == room(name) == "recipes"]
    assert not wrong


def test_stages_of_a_world_take_nothing_from_other_stages():
    """Text is the default world, whose stages build on one another."""
    wrong = []
    for path, own, name in rows():
        world = Path(path).parts[1] if own == "stages" else ""
        if world in {"control", "flows", "marginals"}:
            is_foreign = name.startswith("melior.stages.") and name.split(".")[2] != world
            wrong += [f"{path} imports {name}"] * is_foreign
    assert not wrong, "\n".join(wrong)


def test_only_models_and_what_reads_tokenizers_import_transformers():
    allowed = {"models", "chat.py", "tokenizer.py"}
    wrong = []
    for path in ROOT.rglob("*.py"):
        parts = set(path.relative_to(ROOT).parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(n.split(".")[0] == "transformers" for n in names) and not parts & allowed:
                wrong.append(str(path))
    assert not wrong


def test_records_and_options_need_no_torch():
    for name in (
        "records.py",
        "checks.py",
        "options.py",
        "own.py",
        "config.py",
        "data/files.py",
        "cli.py",
    ):
        path = ROOT / name
        if not path.exists():
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        head = [n for n in body if isinstance(n, ast.Import | ast.ImportFrom)]
        modules = {a.name for n in head if isinstance(n, ast.Import) for a in n.names}
        modules |= {n.module or "" for n in head if isinstance(n, ast.ImportFrom)}
        assert not {m.split(".")[0] for m in modules} & {"torch", "transformers"}, name
