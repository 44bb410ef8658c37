"""The tables of the model card: what `whisper-gpt eval` found of the bundle that ships."""

from pathlib import Path

from benchmarks.report.pages import Report, interval, loaded, table

AUDIO = {
    "eval_speech": "Speech: LibriSpeech test-other, speakers that training never saw",
    "eval_music": "Music: piano pieces that training never saw, rendered from MIDI",
}


def evaluation(title: str, report: Report) -> list[str]:
    """The tables of one `whisper-gpt eval`."""
    lines = [
        f"**{title}** ({report['clips']} clips, {report['seconds']:.0f} s; 95 % bootstrap intervals over clips)",
        "",
    ]
    rows = [
        [count, *(interval(figures.get(name)) for name in ("log_mel", "stoi", "pesq", "si_sdr"))]
        for count, figures in report["codec"]["codebooks"].items()
    ]
    lines += table(["codebooks", "log-mel distance, nats", "STOI", "PESQ (wide band)", "SI-SDR, dB"], rows)
    language = report["language_model"]
    rows = []
    for source in ("real", "decoded", "masked"):
        row = language[source]
        below, accuracy = interval(row["below_unigram"]), interval(row["accuracy"], 3)
        rows.append([source, interval(row["nll"]), below, f"{row['perplexity']:.1f}", accuracy])
    lines += table(["mel", "NLL, nats a token", "below the unigram", "perplexity", "accuracy"], rows)
    fine = ", ".join(f"{x:.2f}" for x in report["fine_nll"])
    own = report["codec"]["entropy_nats"][0]
    unigram = f"Unigram of the training tokens: {interval(language['unigram_nll'])} nats"
    bound = f"the best that any unigram could do on these clips, their tokens' own entropy: {own:.2f}"
    lines += [f"{unigram}; {bound}. Codebooks 2 to 8, nats a code: {fine}.", ""]
    return lines


def evaluations(folder: Path) -> list[str]:
    """The tables of every kind of audio that was measured."""
    found = {title: report for name, title in AUDIO.items() if (report := loaded(folder, name)) is not None}
    return [line for title, report in found.items() for line in evaluation(title, report)]
