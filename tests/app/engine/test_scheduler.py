"""The pace rule, with a clock of the test's own."""

from app.engine.scheduler import PAUSE_SECONDS, PLAYBACK_LEAD_SECONDS, Scheduler
from model.constants import FRAME_RATE_HZ

MUCH = round(FRAME_RATE_HZ * (PLAYBACK_LEAD_SECONDS + 0.5))  # frames: made at once, most of them wait to be played


def scheduler(*, streamed: str, frames: dict[int, int], now: float = 10.0, deadline: float = 100.0) -> Scheduler:
    """Rows that have made so many frames, all of them just now; ``streamed`` names the rows with a listener."""
    made = Scheduler()
    for row, count in frames.items():
        made.join(row, streamed=str(row) in streamed, deadline=deadline)
        for _ in range(count):
            made.generated([row], now)
    return made


def rows(made: Scheduler, now: float = 10.0, prompts_wait: bool = False, ending: bool = False) -> list[int]:
    return made.turn(now, prompts_wait=prompts_wait, ending=ending).rows


def test_who_has_audio_in_hand_waits_for_those_without() -> None:
    made = scheduler(streamed="012", frames={0: MUCH, 1: 5, 2: 0})
    assert rows(made) == [1, 2]


def test_alone_it_runs_as_fast_as_it_can() -> None:
    assert rows(scheduler(streamed="0", frames={0: MUCH})) == [0]


def test_it_waits_for_a_prompt_until_its_listener_has_played_on() -> None:
    made = scheduler(streamed="0", frames={0: MUCH})
    turn = made.turn(10.0, prompts_wait=True, ending=False)
    assert (turn.rows, turn.pause_seconds) == ([], PAUSE_SECONDS)
    assert rows(made, 10.4, prompts_wait=True) == []
    assert rows(made, 10.6, prompts_wait=True) == [0]


def test_a_whole_answer_is_never_held_back() -> None:
    """Nobody listens to it yet."""
    made = scheduler(streamed="1", frames={0: MUCH, 1: 5})
    assert rows(made) == [0, 1]
    assert rows(made, prompts_wait=True) == [0, 1]
    assert rows(scheduler(streamed="", frames={0: MUCH, 1: 0}), prompts_wait=True) == [0, 1]


def test_a_stream_lets_a_whole_answer_go_first() -> None:
    assert rows(scheduler(streamed="0", frames={0: MUCH, 1: 3})) == [1]


def test_who_is_due_is_told_to_other_workers() -> None:
    made = scheduler(streamed="01", frames={0: MUCH, 1: 5, 2: 5})
    assert not made.due([0], 10.0) and made.due([0], 10.6)
    assert made.due([0, 1], 10.0) and made.due([2], 10.0)


def test_each_row_is_paced_by_its_own_first_frame() -> None:
    """The third choice of a request got its slot late; its listener has not begun with the first one's."""
    made = scheduler(streamed="01", frames={0: 10 * MUCH}, now=0.0)
    made.join(1, streamed=True, deadline=100.0)
    for _ in range(MUCH):
        made.generated([1], 10.0)
    assert rows(made, 10.1, prompts_wait=True) == [0], "the first listener is at the end, the second has begun"


def test_nobody_waits_when_time_is_up() -> None:
    made = scheduler(streamed="0", frames={0: MUCH}, deadline=12.0)
    made.generated([0] * 1_000, 10.0)
    assert rows(made, 11.9, prompts_wait=True) == []
    assert rows(made, 12.1, prompts_wait=True) == [0], "it must end"
    assert rows(made, 11.9, prompts_wait=True, ending=True) == [0], "and so must all at a shutdown"


def test_without_rows_there_is_nothing_to_wait_for() -> None:
    made = Scheduler()
    assert made.turn(10.0, prompts_wait=True, ending=False) == ([], 0.0)
    made.join(0, streamed=True, deadline=100.0)
    made.leave(0)
    assert made.turn(10.0, prompts_wait=True, ending=False) == ([], 0.0)


def test_no_listener_hears_a_gap() -> None:
    """Four streams join one after the other beside a whole answer, and a prompt is read half of the time.

    A step takes half a frame's time for the five of them, so that it can be done.
    """
    made, now = Scheduler(), 0.0
    made.join(0, streamed=False, deadline=1e9)
    frames, first = [0] * 5, [0.0] * 5
    to_come = [1, 2, 3, 4]
    while now < 30.0:
        if to_come and now > to_come[0]:
            made.join(to_come.pop(0), streamed=True, deadline=1e9)
        turn = made.turn(now, prompts_wait=int(now) % 2 == 0, ending=False)
        now += (0.1 * len(turn.rows) / FRAME_RATE_HZ) if turn.rows else turn.pause_seconds
        made.generated(turn.rows, now)
        for row in turn.rows:
            first[row] = first[row] or now
            frames[row] += 1
        leads = [frames[row] / FRAME_RATE_HZ - (now - first[row]) for row in range(1, 5) if frames[row]]
        assert all(lead > 0 for lead in leads)
    assert frames[0] > 30 * FRAME_RATE_HZ * 5, "the whole answer was made at the speed that the others left over"
    assert max(leads) < PLAYBACK_LEAD_SECONDS + 0.1
