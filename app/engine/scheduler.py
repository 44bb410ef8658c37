"""Which rows of a decode worker run now: the pace rule, all of it.

Who listens must hear no gap, and who has heard nothing should not wait long. Therefore a stream whose listener has
audio in hand lets the other rows go first, and stands still while somebody waits for a prompt to be read. A request
that is answered as a whole has no listener yet: it is never held back. On an idle machine all run as fast as they can.

Pure: no thread, lock or clock in here. Times are seconds of whatever clock the caller has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from model.constants import FRAME_RATE_HZ

PLAYBACK_LEAD_SECONDS = 0.5  # of audio that a listener has in hand: who has more can wait for those who have less
PAUSE_SECONDS = 0.005  # until the rule is asked again when no row is to run: a third of a frame


class Turn(NamedTuple):
    """The rule's answer."""

    rows: list[int]  # to be stepped together
    pause_seconds: float  # when there are none: how long to wait before asking again


@dataclass
class Pace:
    """How far a row has come."""

    streamed: bool
    deadline: float
    frames: int = 0
    first_frame: float = 0.0  # when it was generated: the listener of this row plays from then on

    def lead_seconds(self, now: float) -> float:
        """The audio that the listener has in hand."""
        return self.frames / FRAME_RATE_HZ - (now - self.first_frame)


class Scheduler:
    """The rows of one decode worker, and what each has generated."""

    def __init__(self) -> None:
        self._rows: dict[int, Pace] = {}

    def join(self, row: int, *, streamed: bool, deadline: float) -> None:
        """Work begins in a row; at its deadline it is to end with what it has."""
        self._rows[row] = Pace(streamed, deadline)

    def leave(self, row: int) -> None:
        del self._rows[row]

    def generated(self, rows: Iterable[int], now: float) -> None:
        """Each of these rows has one more frame."""
        for row in rows:
            pace = self._rows[row]
            if not pace.frames:
                pace.first_frame = now
            pace.frames += 1

    def turn(self, now: float, *, prompts_wait: bool, ending: bool) -> Turn:
        """The rows to step now.

        Args:
            now: the time.
            prompts_wait: is a prompt being read, or waiting for it?
            ending: all rows are to end with what they have.
        """
        rows = list(self._rows)
        due = [row for row in rows if ending or not self._waits(self._rows[row], now)]
        if due:
            return Turn(due, 0.0)
        if rows and prompts_wait:
            return Turn([], PAUSE_SECONDS)
        return Turn(rows, 0.0)

    def due(self, rows: Iterable[int], now: float) -> bool:
        """Does somebody wait for one of these rows? Otherwise rows of other workers may go first."""
        return any(not self._waits(self._rows[row], now) for row in rows)

    @staticmethod
    def _waits(pace: Pace, now: float) -> bool:
        """May the row stand back? One whose time is up may not: it ends at its next step."""
        if not pace.streamed or not pace.frames or now > pace.deadline:
            return False
        return pace.lead_seconds(now) > PLAYBACK_LEAD_SECONDS
