"""Draw docs/results/table.png from benchmarks/results/table.json.

python -m benchmarks.report.table_plot
"""

from pathlib import Path

from benchmarks.common import RESULTS, ROOT
from benchmarks.report.pages import Report, loaded


def plot(report: Report, path: Path) -> None:
    """Validation NLL over the tokens seen: a panel a kind, a colour a row, a line a seed (paper, figures 2 and 3)."""
    from matplotlib.figure import Figure as Canvas

    plan, kinds = report["conditions"]["plan"], list(report["utterances"])
    a_step = plan["batch"] * plan["length"]
    canvas = Canvas(figsize=(5.2 * len(kinds), 4.4), layout="constrained")
    for place, kind in enumerate(kinds):
        axes = canvas.add_subplot(1, len(kinds), place + 1)
        column = 1 if kind == "speech" else 2
        rows = [(name, row) for name, row in report["rows"].items() if kind in row]
        drawn = [(name, row["curves"]) for name, row in rows if any(row["curves"])]
        for colour, (name, curves) in enumerate(drawn):
            for number, curve in enumerate(curves):
                points = [(point[0] * a_step / 1e3, point[column]) for point in curve]
                axes.plot(
                    *zip(*points, strict=True), label=None if number else name, color=f"C{colour}", linewidth=1.2,
                    linestyle="--" if name == "gpt-l" else "-",
                )  # fmt: skip
        axes.set_title(f"{kind}, validation")
        axes.set_xlabel("tokens seen, thousands")
        axes.set_ylabel("NLL, nats a token")
        axes.grid(alpha=0.3)
        if not place:
            axes.legend(frameon=False)
    canvas.savefig(path, dpi=90, metadata={"Software": None})


if __name__ == "__main__":
    found = loaded(RESULTS, "table")
    assert found is not None, "make table comes first"
    plot(found, ROOT / "docs" / "results" / "table.png")
