"""A recorded set of requests: what proves that a change leaves every bit of every answer what it was.

    python -m tests.support.recorded /tmp/before.json              # before the change: 2 minutes
    python -m tests.support.recorded /tmp/before.json --compare    # after it: 1 with the names of those that differ

The same bundle, request and seed give the same bytes on one machine; another processor's kernels may round otherwise,
so a record belongs to a machine and is not kept in the repository. The requests reach each codec decoder and encoder
with a backend of its own, the shipped bundle, each way to draw, and each form of answer whose bytes are ours.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Bundle, load_bundle, random_bundle
from tests.support.service import Service, serving
from tests.support.signals import enliven, make_speech_like

ROOT = Path(__file__).parents[2]
CLIPS = ("speech", "music")
OTHER_TIMES = {"id", "created", "timings"}  # of an answer: they tell of the run, not of the request
CONTINUE: tuple[dict[str, Any], ...] = (
    {"seconds": 2, "seed": 7},
    {"seconds": 2, "seed": 8, "n": 3},
    {"seconds": 1, "seed": 9, "temperature": 0.8, "top_k": 50},
    {"seconds": 1, "seed": 10, "top_p": 0.9},
    {"seconds": 1, "seed": 11, "temperature": 0},
    {"seconds": 1, "seed": 12, "prompt_start": 0.5, "prompt_end": 2.5, "include_prompt": "true"},
    {"seconds": 1, "seed": 13, "response_format": "wav"},
    {"seconds": 1, "seed": 14, "response_format": "flac"},
    {"seconds": 1, "seed": 15, "response_format": "pcm", "stream": "true"},
)
SCORE: tuple[dict[str, Any], ...] = (
    {"detail": "full", "top_logprobs": 3},
    {"prompt_seconds": 1, "window_start": 2, "window_seconds": 1, "normalise_by": "alone"},
    {"window_step": 0.5, "window_seconds": 1, "normalise_by": "unigram"},
    {"response_format": "csv"},
    {"response_format": "textgrid"},
)


def bundles() -> Iterator[tuple[str, Bundle]]:
    """The shipped one; and of random weights each decoder and encoder."""
    yield "default", load_bundle(ROOT / "weights" / "default")
    kinds = (("frame", "seanet"), ("harmonic", "seanet"), ("source_filter", "spectral"), ("seanet", "seanet"))
    for decoder, encoder in kinds:
        bundle = random_bundle("tiny", decoder=decoder, encoder=encoder)
        enliven(bundle.codec, make_speech_like(4.0))
        yield f"{decoder}, {encoder}", bundle


def digest(answer: Any) -> str:
    """Of an answer's bytes; of its numbers, where it also tells of its run."""
    if answer.headers["content-type"].startswith("application/json"):
        body = {name: value for name, value in answer.json().items() if name not in OTHER_TIMES}
        content = json.dumps(body, sort_keys=True).encode()
    else:
        content = answer.content
    return hashlib.sha256(content).hexdigest()


def answers(service: Service) -> Iterator[tuple[str, str]]:
    """(request, digest of its answer) of each request."""
    for name in CLIPS:
        clip = (ROOT / "examples" / f"{name}.flac").read_bytes()
        for path, forms in (("/continue", CONTINUE), ("/score", SCORE)):
            for form in forms:
                answer = service.post(path, clip, data=form)
                assert answer.status_code == 200, (path, form, answer.text)
                yield f"{path} {name} {json.dumps(form)}", digest(answer)


def record() -> dict[str, str]:
    """Every bundle's every answer."""
    found: dict[str, str] = {}
    for name, bundle in bundles():
        with serving(bundle, threads=1) as service:
            found |= {f"{name}: {request}": one for request, one in answers(service)}
    return found


def main() -> int:
    """Writes a record, or compares with one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = record()
    if not arguments.compare:
        arguments.file.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{len(found)} answers recorded")  # noqa: T201
        return 0
    before = json.loads(arguments.file.read_text())
    changed = sorted(name for name in before.keys() | found.keys() if before.get(name) != found.get(name))
    print(*changed, f"{len(found)} answers, {len(changed)} differ", sep="\n")  # noqa: T201
    return 1 if changed else 0


if __name__ == "__main__":
    raise SystemExit(main())
