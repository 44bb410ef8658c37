"""The tables of docs/results/codec.md and docs/results/fine_codes.md."""

from benchmarks.report.pages import Report, interval, table

KINDS = {"speech": "Speech", "music": "Piano"}


def codec(report: Report) -> list[str]:
    """Sound by codebooks, use of the codebooks, and pitch locked to the frame rate."""
    lines = []
    names = {"stoi": 3, "pesq": 3, "log_mel": 3, "si_sdr": 1, "pitch": 3}
    for kind, title in ((kind, title) for kind, title in KINDS.items() if kind in report):
        one = report[kind]
        used = {name: digits for name, digits in names.items() if kind == "speech" or name != "pitch"}
        heads = {
            "stoi": "STOI",
            "pesq": "PESQ (wide band)",
            "log_mel": "log-mel distance, nats",
            "si_sdr": "SI-SDR, dB",
        }
        sounds = dict(one["codebooks"]) | {"latents, not quantised": one["latents"]}
        rows = [
            [count, *(interval(figures.get(name), digits) for name, digits in used.items())]
            for count, figures in sounds.items()
        ]
        head = ["codebooks", *(heads.get(name, "pitch right") for name in used)]
        lines += [f"**{title}** ({one['clips']} clips, {one['frames']:,} frames)", "", *table(head, rows)]
        books = one["per_codebook"]
        rows = [
            ["entropy, nats", *(interval(book["entropy"]) for book in books.values())],
            ["codes used, of 1024", *(str(book["codes_used"]) for book in books.values())],
        ]
        lines += table(["codebook", *books], rows)
    lock = report["speech"]["locked"]
    lines += [
        "Voiced frames of speech with a pitch within 25 cents of a multiple of 75 Hz: "
        f"{interval(lock['decoded'], 3)} of the decoded ones, {interval(lock['real'], 3)} of the real ones.",
        "",
    ]
    return lines


def token_probe(report: Report) -> list[str]:
    """What the probes read off the tokens."""
    speech, music, found = report["speech"], report["music"], report["speech"]["pitch"]
    rows = [
        ["samples below 1.2 kHz, R2", f"{speech['waveform_r2']:.3f}", f"{music['waveform_r2']:.3f}"],
        ["log-mel frame, R2", f"{speech['mel_r2']:.3f}", f"{music['mel_r2']:.3f}"],
        ["pitch within 50 cents", f"{found['within_50_cents']:.3f}", "-"],
        ["the same, always guessing the median pitch", f"{found['within_50_cents_of_the_median']:.3f}", "-"],
    ]
    return [
        *table(["asked of 9 frames of tokens", "speech", "piano"], rows),
        f"Validation speakers and pieces: {speech['valid_frames']:,} frames of speech, {found['voiced_frames']:,} "
        f"of them voiced, and {music['valid_frames']:,} of piano; probes trained on {speech['train_frames']:,} and "
        f"{music['train_frames']:,} frames. Median error of the pitch: {found['median_cents']:.0f} cents.",
        "",
    ]


def fine_codes(report: Report) -> list[str]:
    """Likelihood of the fine codes by codebook, and how drawn ones sound."""
    lines = []
    for kind, title in ((kind, title) for kind, title in KINDS.items() if kind in report):
        one = report[kind]
        books = one["nll_per_codebook"]
        rows = [
            ["depth decoder's NLL, nats", *(interval(book["nll"]) for book in books.values())],
            ["entropy of the codes, nats", *(f"{book['entropy']:.2f}" for book in books.values())],
        ]
        lines += [f"**{title}** ({one['clips']} clips, {one['seconds']:.0f} s)", "", *table(["codebook", *books], rows)]
        names = {"log_mel": 3, "stoi": 3, "pesq": 3}
        rows = []
        for name, figures in one["sound"].items():
            count, variant = name.split("/")
            cells = []
            for figure, digits in names.items():
                cells.append(interval(figures.get(figure), digits))
                cells.append(interval(figures.get(f"{figure}_beside_true"), digits, "+"))
            cells.append(interval(figures.get("distance"), 1))
            rows.append([count, variant, *cells])
        heads = ["log-mel", "beside true", "STOI", "beside true", "PESQ", "beside true", "distance"]
        lines += table(["codebooks", "fine codes", *heads], rows)
    return lines
