"""The table of docs/corpora.md: a corpus over Ray Data, measured on one machine, and on paper for sixteen."""

from benchmarks.report.pages import Report, table
from benchmarks.report.speed_tables import on

MACHINES, CORES = 16, 2
HOUR = 3_600


def ray_corpus(report: Report) -> list[str]:
    """Times real time by who scores; what sixteen machines would do at the rate of one actor, and what feeds them."""
    at, speeds = report["conditions"], report["times_real_time"]
    rows = [[name, f"{one['median']:.1f}", f"{one['low']:.1f} to {one['high']:.1f}"] for name, one in speeds.items()]
    alone, most = speeds["one actor"]["median"], report["driver_rows_a_second"]
    actors = MACHINES * CORES
    asked = actors * alone / at["clip_seconds"]
    lines = [
        f"{on(at)}; {at['bundle']}, {at['clips']} clips of {at['clip_seconds']:g} s, each pass with its start, "
        f"{at['turns']} turns, load {at['load']:g} at the start; Ray {at['ray']}, whose cluster was there before:",
        "",
        *table(["who scores", "times real time", "lowest to highest"], rows),
        "",
        f"One driver takes {most:.0f} rows a second when nothing is to be computed. **On paper**, not measured: "
        f"{MACHINES} such machines with {actors} actors at the rate of one would score {actors * alone:,.0f} times "
        f"real time, {HOUR / (actors * alone):.1f} s for an hour of audio, and ask it for {asked:.0f} rows a second, "
        f"{100 * asked / most:.1f} % of what it takes.",
    ]
    return lines
