"""What an answer tells of its audio beside the numbers: audio that was lost, channels that cancel, silence."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Notice:
    """An entry of an answer's ``warnings``: ``code`` for machines, ``message`` for people, ASCII both."""

    code: str
    message: str


def header(notices: Iterable[Notice]) -> dict[str, str]:
    """The same for an answer that is bare audio: no header when there is nothing to tell."""
    told = "; ".join(f"{notice.code}: {notice.message}" for notice in notices)
    return {"x-whispergpt-warning": told} if told else {}


@dataclass
class Damage:
    """What was lost of a file while it was read; the readers add to it."""

    seen: bool = False
    seconds: float = 0.0  # as far as the file lets us tell

    def add(self, seconds: float = 0.0) -> None:
        self.seen = True
        self.seconds += max(seconds, 0.0)

    def notices(self) -> tuple[Notice, ...]:
        if not self.seen:
            return ()
        much = f"about {self.seconds:.2f} s" if self.seconds >= 0.01 else "a part"
        return (Notice("audio_lost", f"{much} of the audio is lost: the file is damaged or incomplete"),)
