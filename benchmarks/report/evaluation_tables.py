"""The tables of consistency pairs, of free running, of continuations and of their silences, in docs/results."""

from benchmarks.report.pages import Report, interval, table


def models(described: Report) -> list[str]:
    """What was measured, a line each."""
    lines = []
    for name, one in described.items():
        training = one["made_by"].get("training") or {}
        trained = f", {training['steps']} steps" if "steps" in training else ""
        books = f", {one['codebooks']} codebook(s)" if one.get("codebooks", 8) != 8 else ""
        mel = "the clip's mel" if one["mel"] == "real" else "no mel"
        size = f"{one['parameters']:,} parameters"
        lines.append(f"* {name}: `{one['bundle']}`, preset {one['preset']}, {size}, {mel}{books}{trained}.")
    return [*lines, ""]


def consistency(report: Report) -> list[str]:
    """Accuracy by kind and score, a table a model."""
    at = report["conditions"]
    counts = ", ".join(f"{kind} {count}" for kind, count in at["pairs"].items())
    lines = [
        f"{at['clips']} clips of {at['speakers']} test speakers; pairs: {counts}. Accuracy (chance is 0.5) with 95 % "
        f"bootstrap intervals over clips; the window is the {at['window_seconds']:g} s after the joint.",
        "",
    ]
    for model, kinds in report["accuracy"].items():
        scores = list(kinds["all"])
        rows = [[kind, *(interval(one[score]) for score in scores)] for kind, one in kinds.items()]
        lines += [f"**{model}**", "", *table(["change", *scores], rows)]
    return lines + models(report["models"])


def free_running(report: Report) -> list[str]:
    """NLL by source of mel, and the long continuations."""
    lines = []
    rows = []
    for source in report["test"]["gap"]["sources"]:
        cells = []
        for split in ("validation", "test"):
            one = report[split]["gap"]["sources"][source]
            cells += [interval(one["nll"]), interval(one["above real"], 3, "+")]
        rows.append([source, *cells])
    counts = {split: report[split]["gap"] for split in ("validation", "test")}
    lines += [
        "NLL in nats a token, and above that with real mel, 95 % bootstrap intervals over clips: "
        + ", ".join(f"{one['clips']} {split} clips ({one['tokens']:,} tokens)" for split, one in counts.items())
        + ".",
        "",
        *table(["mel", "validation", "above real", "test", "above real"], rows),
    ]
    for split in ("validation", "test"):
        stable = report[split]["stability"]
        spans = [key for key in next(iter(stable["sources"]["decoded"].values())) if key != "by second"]
        rows = [
            [name, source, *(interval(one[span], 2, "+" if span == "drift" else "") for span in spans)]
            for name in stable["sources"]["decoded"]
            for source, measures in stable["sources"].items()
            if (one := measures.get(name)) is not None
        ]
        lines += [
            f"Continuations of 30 s after {stable['prompt_seconds']} s, {split} speakers ({stable['streams']}, one "
            f"each), temperature {stable['temperature']:g}; drift is the last span less the first:",
            "",
            *table(["measure", "mel", *spans], rows),
        ]
    return lines


def quality(report: Report) -> list[str]:
    """Figures of continuations, validation and test."""
    lines = []
    heads = ("similarity", "distance", "voiced", "range, semitones", "silence", "level, dB", "surprise, nats")
    names = {"similarity": 3, "distance": 1, "voiced": 3, "range": 1, "silence": 3, "level": 1, "surprise": 2}
    for split in ("validation", "test"):
        one = report[split]
        rows = [
            [name, *(interval(row.get(figure), digits) for figure, digits in names.items())]
            for name, row in one["rows"].items()
        ]
        lines += [
            f"**{split.capitalize()}**: {one['prompts']} prompts of {one['speakers']} speakers. Distances compare "
            f"{one['vectors']} vectors with as many, in {one['dimensions']} dimensions; between two halves of the true "
            f"continuations it is {one['distance_of_halves']:.1f}.",
            "",
            *table(["continuation", *heads], rows),
        ]
    return lines + models(report["models"])


def silences(report: Report) -> list[str]:
    """The share of continuations that fall silent, by temperature, top-p and pause, validation and test."""
    at = report["conditions"]
    lines = [
        f"Share of continuations of speech that are silent for {at['trap_seconds']:g} s at a stretch "
        f"({-at['silent_db']:g} dB below the prompt's loud frames), of {at['made_seconds']:g} s made after "
        f"{at['prompt_seconds']:g} s; `{at['bundle']}`, decoder `{at['hashes']['decoder.safetensors'][:12]}`.",
        "",
    ]
    for split in ("validation", "test"):
        rows, cells = report[split]["rows"], {}
        for row in rows:
            cells[row["temperature"], row["top_p"], row["pause"]] = f"{row['trapped']:.2f}"
        pauses = sorted({row["pause"] for row in rows})
        settings = list(dict.fromkeys((row["temperature"], row["top_p"]) for row in rows))
        made = sum(row["continuations"] for row in rows)
        trapped = sum(row["trapped"] * row["continuations"] for row in rows)
        lines += [
            f"**{split.capitalize()}**: {report[split]['prompts']} prompts, {len(at['seeds'])} seeds each; "
            f"{trapped:.0f} of {made:.0f} in all.",
            "",
            *table(
                ["temperature", "top-p", *("after sound" if not x else f"after {x:g} s of zeros" for x in pauses)],
                [[f"{t:g}", f"{p:g}", *(cells[t, p, pause] for pause in pauses)] for t, p in settings],
            ),
        ]
    return lines


def character(report: Report) -> list[str]:
    """How often a clip is told to be something else than speech or piano, by kind."""
    lines = []
    for part, share in (("speech_and_piano", "false alarms"), ("others", "told")):
        rows = []
        for kind, one in report[part].items():
            count, told = one["clips"], sum(one["told"].values())
            words = ", ".join(f"{what} {n}" for what, n in one["told"].items()) or "-"
            rows.append([kind, str(count), f"{told} ({100 * told / count:.1f} %)", words])
        clips = sum(one["clips"] for one in report[part].values())
        told = sum(sum(one["told"].values()) for one in report[part].values())
        rows.append(["**all**", str(clips), f"{told} ({100 * told / clips:.1f} %)", ""])
        lines += table([part.replace("_", " "), "clips", share, "as what"], rows)
    return lines
