"""Continue a song in parts: each goes on where the last one ended, nothing is uploaded twice, and there is no joint.

python examples/continue_in_parts.py examples/music.flac long.wav --seconds 60
"""

import argparse
import wave

from app.client import Client
from app.client.calls import AudioPart

PART_SECONDS = 15.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--url", default="http://localhost:8000")
    parser.add_argument("--key")
    given = parser.parse_args(arguments)
    made, source = 0.0, {"file": given.clip}
    with Client(given.url, given.key) as client, wave.open(given.out, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(24_000)
        while made < given.seconds - 0.05:
            part_seconds = max(min(PART_SECONDS, given.seconds - made), 0.1)
            for event in client.stream(**source, seconds=part_seconds):
                if isinstance(event, AudioPart):
                    out.writeframes(event.pcm)
                else:
                    made += event.choices[0].seconds
                    source = {"continue_from": event.id}
                    print(f"{made:6.1f} s, {event.choices[0].nll:.2f} nats a token")


if __name__ == "__main__":
    main()
