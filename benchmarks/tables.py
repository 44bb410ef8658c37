"""Write the tables of README.md and of the model card from benchmarks/results/*.json, so that no figure is typed.

python -m benchmarks.tables            # rewrites what stands between the `figures` markers
python -m benchmarks.tables --check    # exit code 1 when a table does not match its JSON
"""

import json
import sys
from typing import Any

from benchmarks.common import RESULTS, ROOT
from benchmarks.speed_tables import speed

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


def tables(with_speed: bool) -> str:
    """All tables whose JSON is there; those of speed belong to the README alone."""
    lines: list[str] = []
    for file, title in AUDIO.items():
        if (RESULTS / file).exists():
            lines += evaluation(title, json.loads((RESULTS / file).read_text()))
    if with_speed:
        lines += speed()
    return "\n".join(lines).rstrip()


def main() -> int:
    """Rewrite, or compare."""
    check, stale = "--check" in sys.argv[1:], 0
    for path in FILES:
        text = path.read_text()
        before, rest = text.split(BEGIN, 1)
        wanted = f"{before}{BEGIN}\n{tables(path.name == 'README.md')}\n{END}{rest.split(END, 1)[1]}"
        if wanted != text and check:
            print(f"{path.relative_to(ROOT)} does not match benchmarks/results; run python -m benchmarks.tables")
            stale += 1
        elif wanted != text:
            path.write_text(wanted)
    return min(stale, 1)


if __name__ == "__main__":
    sys.exit(main())
