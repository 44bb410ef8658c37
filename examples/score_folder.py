"""Score a folder into a table, the likeliest clip first.

python examples/score_folder.py my_clips scores.csv
"""

import argparse
import csv
from pathlib import Path

from app.client import Client

SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".m4a", ".aiff", ".webm"}
TOGETHER = 8  # clips in one request
COLUMNS = ["filename", "seconds", "tokens", "nll", "perplexity", "bits_per_second", "accuracy"]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    files = sorted(path for path in given.folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    rows = []
    with Client(given.url, given.key) as client:
        for start in range(0, len(files), TOGETHER):
            group = files[start : start + TOGETHER]
            for path, result in zip(group, client.score(group).results, strict=True):
                told = result.model_dump()
                if told.get("error"):
                    print(f"{path}: {told['error']['message']}")
                else:
                    rows.append({**told, "filename": str(path.relative_to(given.folder))})
    rows.sort(key=lambda row: row["nll"])
    with open(given.out, "w", newline="") as out:
        table = csv.DictWriter(out, COLUMNS, extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
    print(f"{len(rows)} of {len(files)} clips in {given.out}")


if __name__ == "__main__":
    main()
