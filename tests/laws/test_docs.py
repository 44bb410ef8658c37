"""The pages name what exists: links, places in pages, files, modules, commands and their options, targets of make."""

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.cli.main import COMMANDS, loaded

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (".", "docs", "docs/decisions", "docs/results", "weights", "weights/default", "examples")
    for path in (ROOT / folder).glob("*.md")
)
HISTORY = {"CHANGELOG.md", "docs/log.md"}  # they tell of what was: its names need not exist any more
GUIDES = [name for name in DOCUMENTS if name not in HISTORY]
LINK, NAMED = r"\]\((?!https?:)([^)]+)\)", r"`((?:app|model|benchmarks|tests|docs|deploy|weights)/[\w./-]+)`"
NAMED_MODULE = r"\b((?:app|model|benchmarks)(?:\.\w+)+)"
CALL, SCRIPT, TARGET = r"(?:^|[ /])(?:whisper-gpt) (.*)", r"python -m ([\w.]+)", r"^make ([a-z-]+)"
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


def code_of(document: str) -> list[str]:
    """What stands in blocks and between backticks, a command a line."""
    text = text_of(document).replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line.strip() for block in [*blocks, *inline] for line in block.splitlines()]


@cache
def places_in(path: Path) -> set[str]:
    """What a link's `#...` may name, as GitHub makes it of headings."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    source = ROOT / document
    for link in re.findall(LINK, text_of(document)):
        name, _, place = link.partition("#")
        target = source.parent / name if name else source
        assert target.exists(), link
        assert not place or place in places_in(target), link


@pytest.mark.parametrize("document", GUIDES)
def test_files_that_are_named_exist(document: str) -> None:
    named = re.findall(NAMED, text_of(document))
    assert {name for name in named if not (ROOT / name).exists()} <= {"weights/mine"}


@pytest.mark.parametrize("document", GUIDES)
def test_modules_that_are_named_exist(document: str) -> None:
    named = re.findall(NAMED_MODULE, " ".join(code_of(document)))
    for name in named:
        parent = name.rpartition(".")[0]
        assert any((ROOT / one.replace(".", "/")).with_suffix(end).exists() for one in (name, parent)
                   for end in (".py", "")), name  # fmt: skip


def command(words: list[str]) -> tuple[Any, list[str]] | None:
    """The command that a line's words call, and the options that it gives; None for what is no command line."""
    if not words or words[0] not in COMMANDS:
        return None
    found, rest = loaded(words[0]), words[1:]
    while hasattr(found, "commands"):
        if not rest or rest[0].startswith("-"):
            break
        found, rest = found.commands[rest[0]], rest[1:]
    return found, [word.partition("=")[0] for word in rest if re.match(r"--[a-z]|-[a-z]$", word)]


@pytest.mark.parametrize("document", GUIDES)
def test_commands_and_their_options_exist(document: str) -> None:
    for line in code_of(document):
        for call in re.findall(CALL, line):
            one = command(re.split(r"\s+", call.split("|")[0].split("#")[0].strip()))
            if one is not None:
                found, options = one
                known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
                assert set(options) <= known | {"--help"}, line


@pytest.mark.parametrize("document", GUIDES)
def test_scripts_and_targets_exist(document: str) -> None:
    for line in code_of(document):
        for module in re.findall(SCRIPT, line):
            if module.split(".")[0] in ("app", "model", "benchmarks"):
                assert importlib.util.find_spec(module) is not None, line
        for target in re.findall(TARGET, line):
            assert target in TARGETS, line


def test_there_is_something_to_check() -> None:
    """Expressions that find nothing would let every page pass."""
    for pattern in (LINK, NAMED):
        assert any(re.search(pattern, text_of(document)) for document in GUIDES), pattern
    lines = [line for document in GUIDES for line in code_of(document)]
    for pattern in (NAMED_MODULE, CALL, SCRIPT, TARGET):
        assert any(re.search(pattern, line) for line in lines), pattern


def test_every_page_is_listed() -> None:
    index = text_of("docs/index.md")
    pages = [name.removeprefix("docs/") for name in DOCUMENTS if name.startswith("docs/") and name != "docs/index.md"]
    assert {page for page in pages if f"]({page})" not in index} == set()
