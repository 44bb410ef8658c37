"""The tables of docs/decisions, from what the benchmarks of other runtimes and of other processors' code wrote."""

from benchmarks.report.pages import Report, table
from benchmarks.report.speed_tables import on

NUMBA = "Numba, as shipped"
NATIVE = "this processor"


def count(rows: str) -> str:
    return f"{rows} row" if rows == "1" else f"{rows} rows"


def ways(report: Report) -> list[str]:
    """Names of what was measured, in its order."""
    first, *_ = report["rows"].values()
    return list(first["milliseconds_a_step"])


def processor_ms(one: Report, way: str) -> float:
    """The median of this thread's own time: on a shared machine the wall clock tells of the others."""
    median: float = one["milliseconds_a_step"][way]["processor"]["median"]
    return median


def runtimes(report: Report) -> list[str]:
    """Each runtime's step by rows, how many times Numba's it takes, how far its logits are, and whose bits stay."""
    at, counts = report["conditions"], report["rows"]
    head = ["processor ms a step", *map(count, counts)]
    rows = []
    for way in ways(report):
        times = [one["times_numba"][way]["processor"] for one in counts.values()]
        cells = [
            f"{processor_ms(one, way):.2f} ({ratio:.1f})" for one, ratio in zip(counts.values(), times, strict=True)
        ]
        rows.append([way, *cells])
    lines = [
        f"{on(at)}, onnxruntime {at['onnxruntime']}; one thread, load {at['load']:g} at the start: median of "
        f"{at['turns']} turns of {at['steps']} steps, of the thread's own processor time; in brackets, times {NUMBA}:",
        "",
        *table(head, rows),
    ]
    off = [[way, *(f"{one['most_off_torch'][way]:.0e}" for one in counts.values())] for way in ways(report)]
    lines += table(["largest distance of a logit from torch's", *map(count, counts)], off)
    kept = []
    for way in ways(report):
        same = [one["first_row_as_of_1"][way] for one in counts.values() if "first_row_as_of_1" in one]
        kept.append([way, *("yes" if one else "no" for one in same)])
    company = [count(rows) for rows, one in counts.items() if "first_row_as_of_1" in one]
    return [*lines, *table(["the first row's bits are those of 1 row", *company], kept)]


def portable(report: Report) -> list[str]:
    """The step as compiled for a class of processors, times as compiled for this one."""
    at, counts = report["conditions"], report["rows"]
    rows = []
    for way in ways(report):
        cells = [f"{processor_ms(one, way):.2f} ({one['times_this_processor'][way]:.2f})" for one in counts.values()]
        same = all(one["same_bits"][way] for one in counts.values())
        rows.append([way, *cells, "-" if way == NATIVE else "the same" if same else "others"])
    lines = [
        f"{on(at)}; the whole step, load {at['load']:g} at the start: median of {at['turns']} turns of {at['steps']} "
        "steps, of the process's own processor time; in brackets, times that of the code for this processor:",
        "",
    ]
    return lines + table(["compiled for: ms a step", *map(count, counts), "bits"], rows)


def processes(report: Report) -> list[str]:
    """What users of two processes behind one port notice, by how they share it; and what processes cost."""
    at = report["conditions"]

    def became(one: Report, what: str) -> str:
        answers = one[what]
        lost = [f"{answers[how]} {how}" for how in ("cut off", "without an answer in time") if answers.get(how)]
        return ", ".join(lost or ["none"]) + f" of {sum(answers.values())}"

    built = [report["built"]] if "built" in report else []
    rows = [
        [
            one["way"],
            f"{100 * one['least_share_of_connections']:.0f} %",
            became(one, "stopped"),
            became(one, "killed"),
            f"{one['prompts_found_of_40']} of 40",
            "yes" if one["metrics_differ"] else "no",
        ]
        for one in [*report["shared"], *built]
    ]
    head = ["two processes with", "of new connections, the less busy one gets", "requests lost while one is stopped",
            "while one is killed", "kept prompt found", "/metrics differ"]  # fmt: skip
    lines = [f"{on(at)}; hybrid-4m, load {at['load']:g} at the start:", "", *table(head, rows)]
    for one in built:
        after = one["conditions"]
        lines += [f"The last row is what was built, {on(after)}, load {after['load']:g}; its supervisor holds "
                  f"{one['supervisor_pss_mib']:.0f} MiB (PSS).", ""]  # fmt: skip
    costs = [
        [f"{one['processes']}", f"{one['threads']}", f"{one['pss_mib']:.0f}", f"{one['cpu_seconds_a_second']:.2f}"]
        for one in report["cost"]
    ]
    lines += table(["processes", "threads of each", "memory (PSS), MiB", "processor s a second of audio"], costs)
    if ray := report.get("ray"):
        lines += ["", f"Ray {ray['version']} itself, before Serve and any replica: {ray['processes']} processes, "
                  f"{ray['pss_mib']:.0f} MiB (PSS)."]  # fmt: skip
    return lines
