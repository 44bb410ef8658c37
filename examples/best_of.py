"""Make several takes of a continuation and keep the one that the model itself finds likeliest.

python examples/best_of.py examples/speech.flac best.wav --takes 8
"""

import argparse
import base64

from app.client import Client

TOGETHER = 4  # takes in one request


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("out")
    parser.add_argument("--takes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    takes = []
    with Client(given.url, given.key) as client:
        prompt = client.keep_prompt(given.clip)  # read once, however many takes there are
        for start in range(0, given.takes, TOGETHER):
            count = min(TOGETHER, given.takes - start)
            body = client.generate(prompt=prompt.id, n=count, seconds=given.seconds, seed=start)
            takes += [(choice.nll, body.seed, choice.index, choice.audio.data) for choice in body.choices]
        client.forget(prompt.id)
    for nll, seed, index, _ in sorted(takes):
        print(f"seed {seed}, choice {index}: {nll:.3f} nats a token")
    with open(given.out, "wb") as out:
        out.write(base64.b64decode(min(takes)[3]))


if __name__ == "__main__":
    main()
