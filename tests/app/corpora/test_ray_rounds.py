"""How a corpus is cut for Ray, without Ray."""

from app.corpora.clips import Clip
from app.corpora.ray_rounds import rounds


def test_rounds_hold_no_more_than_they_may() -> None:
    light = [Clip(str(number), "a") for number in range(7)]
    assert [len(some) for some in rounds(iter(light), 3)] == [3, 3, 1]
    heavy = [Clip(str(number), "a", content=bytes(size)) for number, size in enumerate((4, 4, 3, 20, 1, 1))]
    cut = list(rounds(iter(heavy), 9, 10))
    assert [[len(clip.content or b"") for clip in some] for some in cut] == [[4, 4], [3], [20], [1, 1]]
    assert [clip for some in cut for clip in some] == heavy
    assert list(rounds(iter([]))) == []
