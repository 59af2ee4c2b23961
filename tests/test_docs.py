"""What the pages say is so: commands parse, links lead somewhere, snippets run."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from melior import cli
from melior.config import config_arguments
from melior.data.files import FAMILIES
from melior.data.lint import _RULES

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *DOCS]
FOREIGN = {
    "--help",
    "--version",
    "--config",
    "--no-deps",
    "--against",
    "--n",
    "--n-null",
    "--modes",
    "--worse",
    "--nnodes",
    "--nproc-per-node",
    "--rdzv-endpoint",
    "--head",
    "--address",
    "--markdown",
}
"""Options of melior as a whole, and of other programs."""


def fenced(text: str, language: str | None = None) -> list[str]:
    """The fenced blocks of a page, of one language or of any."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for name, body in blocks if language in (None, name)]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def where(page: Path) -> str:
    return str(page.relative_to(ROOT))


def command_lines() -> list[tuple[str, str]]:
    """Every command of a fenced block, also inside a pipe."""
    lines = [(where(page), line) for page in PAGES for block in fenced(page.read_text("utf-8"))
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    parts = [(page, part.strip()) for page, line in lines for part in line.split(" | ")]
    return [(page, part) for page, part in parts if part.startswith("melior ")]


@pytest.mark.parametrize(("page", "line"), command_lines())
def test_every_command_line_parses(page, line):
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    name, rest = cli._command(words)
    if "--config" in rest:
        kind, _ = cli.command(name)
        file = rest.pop(rest.index("--config") + 1)
        rest.remove("--config")
        assert file.endswith(".yaml")
        config_arguments(kind, rest, where=line)
    else:
        cli._parse(name, rest)


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_command_and_option_in_the_text_exists(page):
    spans = re.findall(r"`([^`\n]+)`", prose(page.read_text("utf-8")))
    firsts = {name.split()[0] for name in cli.COMMANDS}
    known = FOREIGN | set(re.findall(r"`(--[\w-]+)`", commands_page().page()))
    for span in spans:
        words = span.split()
        if words[0] == "melior" and words[1] not in ("COMMAND", "--version"):
            assert words[1] in firsts, span
        for word in words:
            if re.fullmatch(r"--[a-z][\w-]*", word):
                assert word.replace("_", "-") in known, span


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", prose(page.read_text("utf-8")), re.MULTILINE)
    bare = [re.sub(r"[^\w\s-]", "", head).strip().lower() for head in heads]
    return {re.sub(r"[\s-]+", "-", head) for head in bare}


def snippets() -> list[tuple[str, str]]:
    return [(where(p), code) for p in PAGES for code in fenced(p.read_text("utf-8"), "python")]


@pytest.mark.parametrize(("page", "code"), snippets())
def test_every_snippet_compiles_and_its_imports_resolve(page, code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                is_of_the_page = name == "truncated_quadratic"
                assert is_of_the_page or hasattr(module, name) or module_exists(node.module, name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name not in EXTRAS or importlib.util.find_spec(alias.name):
                    importlib.import_module(alias.name)


EXTRAS = frozenset({"gymnasium"})
"""Modules that pages use and not every installation has."""


def module_exists(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


@pytest.mark.parametrize("page", PAGES, ids=where)
def test_every_function_of_losses_that_a_page_names_exists(page):
    for module, name in re.findall(r"`melior\.losses\.(\w+)\.(\w+)`", page.read_text("utf-8")):
        assert hasattr(importlib.import_module(f"melior.losses.{module}"), name), name


FLOWS = ("melior gfn", "melior ocgfn", "melior mam", "melior evaluate marginal")


def test_the_readme_gives_five_lines_each():
    python, *_ = fenced((ROOT / "README.md").read_text("utf-8"), "python")
    assert len([line for line in python.splitlines() if line]) <= 5
    lines = [line for page, line in command_lines() if page == "README.md"]
    own = [line for line in lines if not line.startswith(("melior score", "melior sel"))]
    control = [line for line in own if "control" in line or line.startswith("melior morec")]
    flows = [line for line in own if line.startswith(FLOWS)]
    assert (len(own) - len(control) - len(flows), len(control)) == (5, 3)
    assert len(flows) <= 5


def test_the_site_shows_every_page_and_fetches_nothing():
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    shown = re.findall(r"[\w/-]+\.md", json.dumps(site["nav"]))
    assert sorted(shown) == sorted(str(page.relative_to(ROOT / "docs")) for page in DOCS)
    assert site["theme"]["font"] is False
    assert not any(key in site for key in ("extra_css", "extra_javascript"))


def test_the_page_of_commands_is_up_to_date():
    page = commands_page().page()
    shown = (ROOT / "docs" / "commands.md").read_text("utf-8")
    assert shown == page, "run: python tools/make_commands_page.py"


def test_the_page_on_architecture_names_every_room():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in (ROOT / "melior").iterdir():
        is_room = path.suffix == ".py" or (path / "__init__.py").exists()
        assert not is_room or path.name.startswith("__") or f"  {path.name}" in text, path.name


def commands_page():
    file = ROOT / "tools" / "make_commands_page.py"
    spec = importlib.util.spec_from_file_location("make_commands_page", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_data_names_every_finding_and_family():
    text = (ROOT / "docs" / "data.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", text, re.MULTILINE))
    for code, (limit, _) in _RULES.items():
        said = "the first row" if limit == 0 else f"{limit:.0%}".replace("%", " %")
        assert rows[code].startswith("never" if limit > 1 else said), code
    for family in FAMILIES:
        assert family in text


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = '{{"prompt": "what is {i}?", "chosen": "the fox {i}", "rejected": "a dog {i}"}}\n'
    (tmp_path / "pairs.jsonl").write_text("".join(row.format(i=i) for i in range(8)), "utf-8")


def test_the_page_on_adding_a_loss_works_to_the_letter(model_folder, pairs, tmp_path, monkeypatch):
    from melior.losses import preference
    from melior.objectives import relative, table

    text = (ROOT / "docs" / "add-a-loss.md").read_text("utf-8")
    tests, function, options = fenced(text, "python")
    (line,) = [block for block in fenced(text, "") if block.startswith('"')]
    space = {"__name__": "melior.objectives.relative"}
    for code in (function, tests, options):
        exec(compile(code, "add-a-loss.md", "exec"), space)
    for name in [name for name in space if name.startswith("test_")]:
        space[name]()
    loss, kind = space["truncated_quadratic"], space["TruncatedQuadratic"]
    monkeypatch.setattr(preference, "truncated_quadratic", loss, raising=False)
    monkeypatch.setattr(relative, "TruncatedQuadratic", kind, raising=False)
    for name, row in ast.literal_eval("{" + line + "}").items():
        monkeypatch.setitem(table.OBJECTIVES, name, row)
        monkeypatch.setitem(cli.COMMANDS, name, ("recipes.preference", "", row[2]))
    said = ["--model", str(model_folder), "--data", "pairs.jsonl", "--out", "runs/q"]
    cli.main(["truncated-quadratic", *said])
    written = (tmp_path / "runs" / "q" / "metrics.jsonl").read_text("utf-8").splitlines()
    assert json.loads(written[0])["loss"] == pytest.approx(1.0, abs=1e-3)  # margins of 0
    explained = (ROOT / "docs" / "simpo.md").read_text("utf-8")
    assert all(f"`{key}`" in explained for key in json.loads(written[0]))


def test_the_page_on_adding_a_loss_counts_its_lines():
    text = (ROOT / "docs" / "add-a-loss.md").read_text("utf-8")
    _, function, options = fenced(text, "python")
    sizes = [len(code.rstrip().partition(start)[2].splitlines())
             for code, start in ((function, "def "), (options, "@dataclass"))]  # fmt: skip
    assert f"{sizes[0]} lines of function, {sizes[1]} of options and 1 of table" in " ".join(
        text.split()
    )
