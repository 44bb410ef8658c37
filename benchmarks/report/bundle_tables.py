"""The tables of the model card: what `whisper-gpt eval` found of the bundle that ships."""

from pathlib import Path

from benchmarks.report.pages import Report, interval, loaded, table

AUDIO = {
    "eval_speech": "Speech: LibriSpeech test-other, speakers that training never saw",
    "eval_music": "Music: piano pieces that training never saw, rendered from MIDI",
}
TUNED = {"in_tune": "in tune", "chroma": "chroma, against the prompt's"}
JUDGED = {"mos": "DNSMOS, overall", "mos_p808": "DNSMOS, P.808", "similarity": "likeness of the voice to the prompt's"}
HEARD = {"log_mel": "log-mel distance, nats", "stoi": "STOI", "pesq": "PESQ (wide band)"}
OF_KIND = {
    "eval_speech": HEARD | {"pitch": "pitch right"},
    "eval_music": HEARD | {"in_tune": "in tune", "same_notes": "same notes"},
}


def of_kind(figures: Report, music: bool) -> dict[str, str]:
    """What is told of one kind of audio alone: its name in the JSON, its column's head."""
    return TUNED if music else {key: head for key, head in JUDGED.items() if key in figures}


def continuations(report: Report, music: bool) -> list[str]:
    """How five seconds after a prompt of three sound, beside the real ones."""
    heard = report.get("continuations", {})
    if "real" not in heard:
        return []
    own = of_kind(heard["real"], music)
    rows = []
    for name, figures in heard.items():
        if not isinstance(figures, dict):
            continue
        shown = [f"{figures['level_db']:+.1f}", f"{figures['silent']:.2f}", f"{figures['longest_silence']:.1f}"]
        shown += [f"{figures['trapped']:.2f}" if "trapped" in figures else "-"]
        shown += [f"{figures[key]:.2f}" if key in figures else "-" for key in own]
        rows.append([name.replace("_", " "), *shown])
    head = ["5 s after a prompt of 3 s", "level of what sounds, dB", "silent share", "longest silence, s",
            "silent for 1.5 s or more", *own.values()]  # fmt: skip
    return table(head, rows) + drift(heard.get("drift", []), music)


def drift(stretches: list[Report], music: bool) -> list[str]:
    """How 30 s of continuation change on the way, with the defaults."""
    if not stretches:
        return []
    columns = {"level_db": "level of what sounds, dB", "silent": "silent share", "nll": "NLL, nats a token"}
    columns |= of_kind(stretches[0], music)
    width = stretches[1]["from_seconds"] - stretches[0]["from_seconds"] if len(stretches) > 1 else 0
    rows = [
        [
            f"{own['from_seconds']:.0f} to {own['from_seconds'] + width:.0f}",
            *(f"{own[key]:.2f}" if key in own else "-" for key in columns),
        ]
        for own in stretches
    ]
    return table(["seconds of one continuation", *columns.values()], rows)


def judges(report: Report) -> list[str]:
    """What judges that no loss is a relative of make of recoded speech."""
    heard = report.get("judges", {})
    names = [name for name, figures in heard.items() if isinstance(figures, dict)]
    columns = {"mos": "DNSMOS, overall", "mos_signal": "DNSMOS, signal", "mos_p808": "DNSMOS, P.808"}
    columns |= {"word_errors": "words heard otherwise"}
    rows = [[name.replace("_", " "), *(interval(heard[name].get(key)) for key in columns)] for name in names]
    return table([f"{heard['clips']} clips", *columns.values()], rows) if rows else []


def evaluation(name: str, report: Report) -> list[str]:
    """The tables of one `whisper-gpt eval`."""
    title, columns = AUDIO[name], OF_KIND[name]
    lines = [
        f"**{title}** ({report['clips']} clips, {report['seconds']:.0f} s; 95 % bootstrap intervals over clips)",
        "",
    ]
    rows = [
        [count, *(interval(figures.get(column)) for column in columns)]
        for count, figures in report["codec"]["codebooks"].items()
    ]
    lines += table(["codebooks", *columns.values()], rows)
    lines += judges(report) if name == "eval_speech" else []
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
    return lines + continuations(report, name == "eval_music")


def evaluations(folder: Path) -> list[str]:
    """The tables of every kind of audio that was measured."""
    found = {name: report for name in AUDIO if (report := loaded(folder, name)) is not None}
    return [line for name, report in found.items() for line in evaluation(name, report)]
