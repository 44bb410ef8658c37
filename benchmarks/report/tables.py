"""Write the tables of every page from benchmarks/results/*.json, so that no figure is typed.

python -m benchmarks.report.tables            # rewrites what stands between the markers
python -m benchmarks.report.tables --check    # exit code 1 when a table does not match its JSON
"""

import sys

from benchmarks.common import RESULTS, ROOT
from benchmarks.quality.table_report import tables
from benchmarks.report.bundle_tables import evaluations
from benchmarks.report.codec_tables import codec, fine_codes, token_probe
from benchmarks.report.corpus_tables import ray_corpus
from benchmarks.report.evaluation_tables import character, consistency, free_running, quality, silences
from benchmarks.report.pages import Page, of
from benchmarks.report.readme_figures import readme_figures
from benchmarks.report.runtime_tables import portable, processes, runtimes
from benchmarks.report.scaling_tables import capacity, checked, image, load_curve, plan
from benchmarks.report.speed_tables import prompts_together, speed

DOCS = ROOT / "docs" / "results"
DECISIONS = ROOT / "docs" / "decisions"
PAGES = (
    Page(ROOT / "README.md", {"readme_figures": readme_figures}),
    Page(ROOT / "weights" / "default" / "MODEL_CARD.md", {"figures": evaluations}),
    Page(DOCS / "bundle.md", {"figures": evaluations}),
    Page(DOCS / "codec.md", {"codec": of("codec", codec), "token_probe": of("token_probe", token_probe)}),
    Page(DOCS / "fine_codes.md", {"fine_codes": of("fine_codes", fine_codes)}),
    Page(DOCS / "consistency.md", {"consistency": of("consistency", consistency)}),
    Page(DOCS / "free_running.md", {"free_running": of("free_running", free_running)}),
    Page(DOCS / "continuations.md", {"quality": of("quality", quality)}),
    Page(DOCS / "silences.md", {"silences": of("silences", silences)}),
    Page(DOCS / "character.md", {"character": of("character", character)}),
    Page(DOCS / "speed.md", {"speed": speed, "prompts_together": of("prompts_together", prompts_together)}),
    Page(DECISIONS / "0001-numba.md", {"runtimes": of("runtimes", runtimes)}),
    Page(DECISIONS / "0002-one-cache.md", {"portable": of("portable", portable)}),
    Page(DECISIONS / "0003-processes.md", {"processes": of("processes", processes)}),
    Page(DOCS / "table.md", {"table_shipped": of("table_shipped", tables), "table": of("table", tables)}),
    Page(
        ROOT / "docs" / "scaling.md",
        {
            "checked": of("scaling", checked),
            "load_curve": of("scaling", load_curve),
            "capacity": of("scaling", capacity),
            "plan": plan,
        },
    ),
    Page(ROOT / "docs" / "corpora.md", {"ray_corpus": of("ray_corpus", ray_corpus)}),
    Page(ROOT / "docs" / "operations.md", {"image": of("image", image)}),
)


def main() -> int:
    """Rewrite, or compare."""
    stale = 0
    for page in PAGES:
        text = page.path.read_text()
        wanted = page.made(text, RESULTS)
        if wanted != text and "--check" in sys.argv[1:]:
            print(
                f"{page.path.relative_to(ROOT)} does not match benchmarks/results; "
                "run python -m benchmarks.report.tables"
            )
            stale = 1
        elif wanted != text:
            page.path.write_text(wanted)
    return stale


if __name__ == "__main__":
    sys.exit(main())
