"""The tables of docs/scaling.md and of the image, from what was measured and simulated."""

import math
from pathlib import Path

from app.metrics import Metrics
from benchmarks.report.pages import Report, loaded, table
from benchmarks.report.speed_tables import on

LISTENERS = (1_000, 100_000, 10_000_000)
BUSY = 0.75  # share of the most that a machine is planned with: what the autoscaler keeps
PCM_BYTES_A_SECOND, OPUS_BYTES_A_SECOND = 48_000, 6_000  # 24 kHz, 16 bits; 48 kbit/s (app/audio/encode.py)
# Not measured, and of no provider: round figures to put yours in place of. US dollars
CORE_HOUR, EGRESS_GB = 0.04, 0.05


def checked(report: Report) -> list[str]:
    """The simulation beside real runs."""
    at = report["conditions"]
    rows = []
    for one in report["checked"]:
        pairs = [f"{one['simulated'][key] * 1e3:.0f} / {one['real'][key] * 1e3:.0f}" for key in ("p50", "p90", "p95")]
        ratios = [one["simulated_over_real"][key] for key in ("p50", "p90", "p95")]
        worst = max(ratios, key=lambda ratio: abs(math.log(ratio)))
        held = "yes" if one["holds"] else "**no**"
        rows.append([one["run"], *pairs, f"{worst:.2f}", held, "fitted" if one["fitted"] else "predicted"])
    of = ", ".join(f"`{name}.json` of commit {run['commit']}" for name, run in at["real_runs"].items())
    head = ["run", "p50, ms", "p90, ms", "p95, ms", "worst ratio", f"within {at['within'] * 100:.0f} %", ""]
    company = report["costs"]["company"]
    lead = (
        f"First audio, simulated / real ({of}; {at['cores']} cores); in company all takes {company:.2f} times as long:"
    )
    return [lead, "", *table(head, rows)]


def load_curve(report: Report) -> list[str]:
    """First audio against load, of one machine."""
    seconds = report["capacity"]["listen_seconds"]
    rows = [
        [f"{one['rate']:g}", f"{one['listeners']:.0f}", f"{one['first_audio_p50'] * 1e3:.0f}",
         f"{one['first_audio_p95'] * 1e3:.0f}", f"{one['without_a_gap'] * 100:.1f} %", f"{one['refused'] * 100:.1f} %"]
        for one in report["load_curve"]
    ]  # fmt: skip
    head = ["requests a second", "listeners", "first audio p50, ms", "p95, ms", "streams without a gap", "refused"]
    lead = (
        f"Simulated: one machine of {report['capacity']['cores']} cores, prompts of 3 s, {seconds:g} s of audio each:"
    )
    return [lead, "", *table(head, rows)]


def capacity(report: Report) -> list[str]:
    """Listeners of one machine, by length of prompt."""
    found = report["capacity"]
    rows = [
        [f"{float(prompt):g} s", f"{one['listeners']:.0f}", f"{one['first_audio_p95_goal'] * 1e3:.0f} ms"]
        for prompt, one in found["by_prompt_seconds"].items()
    ]
    return table(["prompt", f"listeners of {found['cores']} cores", "p95 of first audio they were looked for by"], rows)


def series_of_a_server() -> int:
    """Time series that Prometheus keeps of one server that has served nothing yet."""
    return sum(len(family.samples) for family in Metrics().registry.collect())


def plan(folder: Path) -> list[str]:
    """Machines and money."""
    report, memory = loaded(folder, "scaling"), loaded(folder, "requests_memory")
    if report is None or memory is None:
        return []
    found = report["capacity"]
    each = math.floor(found["by_prompt_seconds"]["3"]["listeners"] * BUSY)
    rows: list[list[str]] = []
    for listeners in LISTENERS:
        pods = math.ceil(listeners / each)
        cores = pods * found["cores"]
        opus, pcm = (listeners * size * 8 / 1e9 for size in (OPUS_BYTES_A_SECOND, PCM_BYTES_A_SECOND))
        compute = cores * CORE_HOUR
        sent = [listeners * size * 3600 / 1e9 * EGRESS_GB for size in (OPUS_BYTES_A_SECOND, PCM_BYTES_A_SECOND)]
        rows.append([
            f"{listeners:,}", f"{pods:,}", f"{cores:,}", f"{pods * memory['high_mib'] / 1024:,.0f} GiB",
            f"{opus:,.2g} to {pcm:,.2g}" if pcm < 1 else f"{opus:,.1f} to {pcm:,.1f}",
            f"{listeners / found['listen_seconds']:,.0f}", f"{pods * series_of_a_server():,}",
            f"{compute:,.0f}", f"{sent[0]:,.0f} to {sent[1]:,.0f}",
        ])  # fmt: skip
    head = ["listeners", "pods", "cores", "memory under load", "Gbit/s (Opus to pcm)", "requests a second",
            "series of metrics", "$ an hour: cores", "$ an hour: egress (Opus to pcm)"]  # fmt: skip
    lead = (
        f"{each} listeners a pod of {found['cores']} cores ({BUSY:.0%} of what one holds), prompts of 3 s, "
        f"{found['listen_seconds']:g} s of each continuation; ${CORE_HOUR} a core and hour and ${EGRESS_GB} a GB are "
        "**assumed**, not measured and of no provider:"
    )
    return [lead, "", *table(head, rows)]


def image(report: Report) -> list[str]:
    """What the image is, and how it starts."""
    at, mib = report["conditions"], report["mib"]
    parts = ", ".join(f"{name} {size:.0f}" for name, size in list(mib.items())[:6] if name != "all")
    ready = sorted(start["ready_seconds"] for start in report["starts"])
    answers = sorted(start["continue"]["seconds"] for start in report["starts"])
    computed = max(start["ready_processor_seconds"] for start in report["starts"])
    niceness = f", niceness {at['niceness']}" if at["niceness"] else ""
    base, build = (report["build_seconds"].get(name) for name in ("base", "build"))
    made = f"; the base was made in {base:.0f} s, the image built in {build:.0f} s" if base and build else ""
    return [
        f"{mib['all']:.0f} MiB ({parts}). Read-only, as user 10001, without capabilities: ready after {ready[0]:.1f} "
        f"to {ready[-1]:.1f} s ({len(ready)} starts; {computed:.1f} s of processor time at most), a continuation of "
        f"{at['made_seconds']:g} s answered in {answers[0]:.1f} to {answers[-1]:.1f} s ({on(at)}, load {at['load']} at "
        f"the start{niceness}{made}).",
        "",
    ]
