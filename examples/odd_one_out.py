"""Find the clip that does not belong: the one whose likelihood lies furthest from the others' middle.

    python examples/odd_one_out.py one.flac two.flac three.flac four.flac

It compares likelihoods, so it finds noise among speech, not a speaker among others.
"""

import argparse
from statistics import median

from app.client import Client


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+")
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    if len(given.clips) < 3:
        parser.error("of two clips nobody can tell which is odd")
    with Client(given.url, given.key) as client:
        results = client.score(given.clips).results
    nlls = {}
    for clip, result in zip(given.clips, results, strict=True):
        told = result.model_dump()
        if told.get("error"):
            parser.error(f"{clip}: {told['error']['message']}")
        nlls[clip] = told["nll"]
    middle = median(nlls.values())
    odd = max(nlls, key=lambda clip: abs(nlls[clip] - middle))
    for clip, nll in nlls.items():
        print(f"{nll:6.3f} {clip}{'  <- odd' if clip == odd else ''}")
    return odd


if __name__ == "__main__":
    main()
