"""Write the tables of README.md and of the model card from benchmarks/results/*.json, so that no figure is typed.

python benchmarks/tables.py            # rewrites what stands between the `figures` markers
python benchmarks/tables.py --check    # exit code 1 when a table does not match its JSON
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
FILES = (ROOT / "README.md", ROOT / "weights" / "default" / "MODEL_CARD.md")
AUDIO = {
    "eval_speech.json": "Speech: LibriSpeech test-other, speakers that training never saw",
    "eval_music.json": "Music: piano pieces that training never saw, rendered from MIDI",
}


def interval(figure: dict[str, float], digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    return f"{figure['mean']:.{digits}f} ({figure['low']:.{digits}f} to {figure['high']:.{digits}f})"


def evaluation(title: str, report: dict[str, Any]) -> list[str]:
    """The tables of one `whisper-gpt eval`."""
    lines = [
        f"**{title}** ({report['clips']} clips, {report['seconds']:.0f} s; 95 % bootstrap intervals over clips)",
        "",
    ]
    lines += ["| codebooks | log-mel distance, nats | STOI | PESQ (wide band) | SI-SDR, dB |", "|---|---|---|---|---|"]
    for count, figures in report["codec"]["codebooks"].items():
        cells = [interval(figures[name]) if name in figures else "-" for name in ("log_mel", "stoi", "pesq", "si_sdr")]
        lines.append(f"| {count} | {' | '.join(cells)} |")
    language = report["language_model"]
    lines += ["", "| mel | NLL, nats a token | below the unigram | perplexity | accuracy |", "|---|---|---|---|---|"]
    for source in ("real", "decoded", "masked"):
        row = language[source]
        below, accuracy = interval(row["below_unigram"]), interval(row["accuracy"], 3)
        lines.append(f"| {source} | {interval(row['nll'])} | {below} | {row['perplexity']:.1f} | {accuracy} |")
    fine = ", ".join(f"{x:.2f}" for x in report["fine_nll"])
    own = report["codec"]["entropy_nats"][0]
    unigram = f"Unigram of the training tokens: {interval(language['unigram_nll'])} nats"
    bound = f"the best that any unigram could do on these clips, their tokens' own entropy: {own:.2f}"
    lines += ["", f"{unigram}; {bound}. Codebooks 2 to 8, nats a code: {fine}.", ""]
    return lines


def speed(report: dict[str, Any]) -> list[str]:
    """The table of the closed loop."""
    conditions = report["conditions"]
    where = f"CPU, {conditions['threads']} thread, torch {conditions['torch']}"
    lines = [f"**Speed** ({where}; median of {conditions['turns']} turns, lowest and highest in brackets)", ""]
    lines += ["| what | figure |", "|---|---|"]
    for name, figure in report["figures"].items():
        lines.append(f"| {name} | {figure['median']:.2f} ({figure['low']:.2f} to {figure['high']:.2f}) |")
    return lines


def tables() -> str:
    """All tables whose JSON is there."""
    lines: list[str] = []
    for file, title in AUDIO.items():
        if (RESULTS / file).exists():
            lines += evaluation(title, json.loads((RESULTS / file).read_text()))
    if (RESULTS / "closed_loop.json").exists():
        lines += speed(json.loads((RESULTS / "closed_loop.json").read_text()))
    return "\n".join(lines).rstrip()


def main() -> int:
    """Rewrite, or compare."""
    check, stale = "--check" in sys.argv[1:], 0
    for path in FILES:
        text = path.read_text()
        before, rest = text.split(BEGIN, 1)
        wanted = f"{before}{BEGIN}\n{tables()}\n{END}{rest.split(END, 1)[1]}"
        if wanted != text and check:
            print(f"{path.relative_to(ROOT)} does not match benchmarks/results; run python benchmarks/tables.py")
            stale += 1
        elif wanted != text:
            path.write_text(wanted)
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
