"""Pages that hold what the scripts measured: what stands between two markers is made of benchmarks/results/*.json."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = dict[str, Any]
Part = Callable[[Path], list[str]]  # from the folder of results to lines; none while there is nothing to show


def interval(figure: dict[str, float] | None, digits: int = 2, sign: str = "") -> str:
    """A mean with its 95 % interval; a dash where there is none."""
    if figure is None:
        return "-"
    mean, low, high = (f"{figure[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)] + [""]


def loaded(folder: Path, name: str) -> Report | None:
    """What a script wrote, None when it was not run."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def of(name: str, lines: Callable[[Report], list[str]]) -> Part:
    """A part that shows one JSON."""

    def part(folder: Path) -> list[str]:
        report = loaded(folder, name)
        return [] if report is None else lines(report)

    return part


def marker(name: str, edge: str) -> str:
    return f"<!-- {name}:{edge} -->"


@dataclass(frozen=True)
class Page:
    """A page and its parts by the name in their markers."""

    path: Path
    parts: dict[str, Part]

    def made(self, text: str, folder: Path) -> str:
        """The text with every part made anew that has something to show."""
        for name, part in self.parts.items():
            lines = part(folder)
            if lines:
                before, rest = text.split(marker(name, "begin"), 1)
                after = rest.split(marker(name, "end"), 1)[1]
                body = "\n".join(lines).rstrip()
                text = f"{before}{marker(name, 'begin')}\n{body}\n{marker(name, 'end')}{after}"
        return text
