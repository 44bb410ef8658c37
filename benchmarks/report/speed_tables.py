"""The tables of docs/results/speed.md, from what the benchmarks of speed wrote."""

from pathlib import Path

from benchmarks.report.pages import Report, loaded, table

GOALS = "goal on 2 cores"
STEP_ROWS = (
    "Hugging Face generate",
    "Hugging Face generate, static cache",
    "uncached loop, gpt-s",
    "ours in torch, gpt-s",
    "ours, gpt-s",
    "ours, hybrid-4m",
    "ours, gpt-l",
    "ours, hybrid-4m, closed loop with 8 codebooks",
)


def on(conditions: Report) -> str:
    """The machine, in words."""
    cores = f"{conditions['cores']} cores"
    return f"{conditions['processor']}, {cores}, torch {conditions['torch']}, commit {conditions['commit']}"


def step_table(report: Report) -> list[str]:
    """Milliseconds a step by rows, the machine's limit in brackets, and the ratios."""
    counts = report["rows"]
    at = report["conditions"]
    head = ["ms a step", *(f"{count} row{'s' if count != '1' else ''}" for count in counts)]
    lines = [
        f"**A step** beside what one would pick instead ({on(at)}; one thread; median of {at['turns']} turns of "
        f"{at['steps']} steps in one process, after a prompt of {at['prompt_positions']} positions; in brackets the "
        f"machine's limit: operations and bytes of the step at the rates measured a moment "
        f"apart, which a noisy machine can beat; transformers "
        f"{at['transformers']}; weights of gpt-s and gpt-l random)",
        "",
    ]
    rows = []
    for name in STEP_ROWS:
        cells = [name]
        for one in counts.values():
            value = one["milliseconds_a_step"][name]["wall"]["median"]
            limit = one["roofline"].get(name)
            cells.append(f"{value:.2f}" + (f" ({limit['limit_ms']:.2f})" if limit else ""))
        rows.append(cells)
    pairs = (
        ("Hugging Face's, times ours", "Hugging Face generate / ours, gpt-s"),
        ("with a static cache, times ours", "Hugging Face generate, static cache / ours, gpt-s"),
        ("gpt-l, times hybrid-4m", "ours, gpt-l / ours, hybrid-4m"),
    )
    for label, key in pairs:
        rows.append([label, *(f"**{one['ratios'][key]['wall']:.1f}**" for one in counts.values())])
    loops = (
        f"The closed loop's row is of the {at['steps']} frames after the prompt. The first table's stream is another "
        "measurement: it is longer, and attends to more."
    )
    return [*lines, *table(head, rows), loops, ""]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def closed_loop_rows(report: Report) -> list[tuple[str, str, str]]:
    speeds, times = report["times_real_time"], report["milliseconds"]
    by_books = ", ".join(f"{speeds[f'step, {books} codebooks']:.1f}" for books in (2, 4, 8))
    torch = ", ".join(f"{speeds[f'torch, {books} codebooks']:.1f}" for books in (2, 4, 8))
    reading = ", ".join(f"{times[f'prompt of {seconds} s']['wall']['median']:.0f} ms" for seconds in (3, 10))
    at = report["conditions"]
    what = f"{at['frames']} frames after a prompt of {at['prompt_seconds']} s"
    return [
        (f"one stream, one core, {what}, 2, 4, 8 codebooks: times real time", by_books, "8 at 8 codebooks"),
        ("the same in plain torch (`model.inference.generate`), a fifth as many frames", torch, ""),
        ("a prompt of 3 s, 10 s is read in", reading, ""),
    ]


def stream_rows(report: Report) -> list[tuple[str, str, str]]:
    live = report["live_streams"]
    most = [one for one in report["workers"] if one["streams"] == live["workers"]]
    rows = []
    if most:
        text = f"{live['workers']} ({most[0]['times_real_time']:.2f} x real time, 99 % of steps below "
        text += f"{most[0]['step_ms']['p99']:.1f} ms)"
        rows = [("live streams without a gap, decode workers alone", text, "32")]
    within = f"{report['conditions']['buffer_seconds']:g} s"
    label = f"live streams without a gap, over HTTP, player holds {within}"
    return [*rows, (label, str(live["http"]), "32")]


def first_audio_rows(report: Report) -> list[tuple[str, str, str]]:
    rows = []
    for name, one in report["alone"].items():
        first = one["first_audio_seconds"]
        text = f"{milliseconds(first['p50'])}, {milliseconds(first['p95'])}"
        rows.append((f"first audio, {name}, p50, p95", text, "120 ms" if name.startswith("3 ") else ""))
    rate = report["conditions"]["rate"]
    for name, one in report["load"].items():
        first = one["figures"]["first_audio_seconds"]
        text = f"{milliseconds(first['p50'])}, {milliseconds(first['p95'])}"
        rows.append((f"the same with {rate:g} requests a second, server {name}", text, ""))
    return rows


def batching_rows(report: Report) -> list[tuple[str, str, str]]:
    made = report["conditions"]["requests"] * report["conditions"]["made_seconds"]
    seconds, ratios = report["seconds"], report["times_as_fast_at_once"]
    once = seconds["all at once"]["median"]
    (turn, single) = ratios.values()
    return [
        ("16 requests at once: seconds of audio a second", f"{made / once:.1f}", ""),
        ("16 at once: times as fast as in turn", f"{turn:.1f}", "4"),
        ("16 at once: times as fast as a server with one slot", f"{single:.1f}", ""),
    ]


def score_rows(report: Report) -> list[tuple[str, str, str]]:
    return [
        (f"scoring, {name}: times real time", f"{figure['median']:.1f}", "60" if "two" in name else "")
        for name, figure in report["times_real_time"].items()
    ]


def memory_rows(report: Report) -> list[tuple[str, str, str]]:
    minutes = report["audio_seconds"] / 60
    text = (
        f"{report['mib_a_minute']:+.2f} MiB a minute of audio ({report['low_mib']:.0f} to {report['high_mib']:.0f} MiB)"
    )
    return [(f"memory of the server over a stream of {minutes:.0f} minutes", text, "flat")]


PARTS = {
    "closed_loop": closed_loop_rows,
    "streams": stream_rows,
    "first_audio": first_audio_rows,
    "batching": batching_rows,
    "score_throughput": score_rows,
    "memory": memory_rows,
}


def speed(folder: Path) -> list[str]:
    """All tables of speed whose JSON is there."""
    lines: list[str] = []
    rows: list[tuple[str, str, str]] = []
    conditions: list[Report] = []
    for name, part in PARTS.items():
        report = loaded(folder, name)
        if report is not None:
            rows += part(report)
            conditions.append(report["conditions"])
    if rows:
        at = conditions[0]
        commits = sorted({str(one["commit"]) for one in conditions})
        where = f"{at['processor']}, {at['cores']} cores, torch {at['torch']}, commit {', '.join(commits)}"
        lines += [f"**Speed** ({where}; client and server on the same machine)", ""]
        lines += table(["what", "figure", GOALS], rows)
    step = loaded(folder, "step")
    return lines + (step_table(step) if step is not None else [])


def prompts_together(report: Report) -> list[str]:
    """Reading in a batch beside reading one by one."""
    at, times = report["conditions"], report["milliseconds"]
    rows = []
    for part, ratio in report["batch_times_one_by_one"].items():
        own = (f"{times[f'{part}, {way}']['wall']['median']:.0f}" for way in ("one by one", "one batch"))
        rows.append([part, *own, f"{ratio:.2f}"])
    what = f"{at['prompts']} prompts of {at['prompt_seconds']} s"
    lines = [f"{what} on one core, milliseconds, medians of {at['turns']} turns ({on(at)}):", ""]
    return lines + table(["part", "one by one", "one batch", "batch / one by one"], rows)
