"""Scoring: what teacher forcing on the whole clip gives, in chunks of any size, with memory that does not grow."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import FRAME_RATE_HZ, HOP_SAMPLES
from model.inference.prefill import prefill
from model.inference.scoring import (
    MIN_FRAMES,
    Detail,
    MelSource,
    Positions,
    PromptEncoder,
    Score,
    TooShortError,
    Window,
    WindowError,
    WindowScore,
    chunks,
    score,
)
from model.lm.hybrid_lm import shift

TOLERANCE: dict[str, Any] = dict(rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def clip(speech_like: Tensor) -> Tensor:
    """2 s, three windows of the model; ends within a frame."""
    return speech_like[: 150 * HOP_SAMPLES + 111]


@torch.inference_mode()
def whole(bundle: Bundle, samples: Tensor, mel: MelSource, codebooks: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """The plain path: the whole clip at once, no cache, no streaming: tokens, log-probabilities, hits (T,) each."""
    codes = bundle.codec.encode(samples[None])
    heard = samples[None] if mel == "real" else bundle.codec.decode(codes[:, :codebooks])
    tokens, mel_frames = shift(codes[:, 0], None if mel == "masked" else bundle.mel(heard))
    logits = bundle.lm.logits(bundle.lm(tokens, mel_frames))[0]
    target = codes[0, 0]
    return target, logits.log_softmax(-1).gather(-1, target[:, None])[:, 0], logits.argmax(-1) == target


@pytest.mark.parametrize("mel", ["real", "decoded", "masked"])
@pytest.mark.parametrize("chunk_frames", [7, 8, 50, 150, 750])
def test_chunked_equals_whole(bundle: Bundle, clip: Tensor, mel: MelSource, chunk_frames: int) -> None:
    tokens, logprobs, correct = whole(bundle, clip, mel)
    got = score(bundle, clip, mel=mel, chunk_frames=chunk_frames)
    assert torch.equal(got.tokens, tokens)
    torch.testing.assert_close(got.logprobs, logprobs, **TOLERANCE)
    assert torch.equal(got.correct, correct)


def test_the_source_of_the_mel_matters(bundle: Bundle, clip: Tensor) -> None:
    figures = [score(bundle, clip, mel=mel).nll for mel in ("real", "decoded", "masked")]
    figures.append(score(bundle, clip, mel="decoded", codebooks=2).nll)
    assert len({round(figure, 5) for figure in figures}) == 4


def test_codebooks_of_the_decoded_mel(bundle: Bundle, clip: Tensor) -> None:
    _, logprobs, _ = whole(bundle, clip, "decoded", codebooks=2)
    torch.testing.assert_close(score(bundle, clip, mel="decoded", codebooks=2).logprobs, logprobs, **TOLERANCE)


def test_blocks_of_any_size(bundle: Bundle, clip: Tensor) -> None:
    def blocks() -> Iterator[Tensor]:
        yield from clip.split([1, 5000, 319, 20000, len(clip) - 25320])

    at_once, in_blocks = score(bundle, clip), score(bundle, blocks(), chunk_frames=20)
    assert torch.equal(at_once.tokens, in_blocks.tokens)
    torch.testing.assert_close(at_once.logprobs, in_blocks.logprobs, **TOLERANCE)


@pytest.mark.parametrize("context", [0, 1, 40, 149])
def test_context_is_read_and_not_scored(bundle: Bundle, clip: Tensor, context: int) -> None:
    everything = score(bundle, clip)
    got = score(bundle, clip, context_frames=context, chunk_frames=20)
    assert len(got.tokens) == 150 - context and got.context_frames == context
    assert torch.equal(got.tokens, everything.tokens[context:])
    torch.testing.assert_close(got.logprobs, everything.logprobs[context:], **TOLERANCE)


WINDOWS = [(0, None), (0, 150), (0, 1), (40, 90), (95, None), (149, 150), (100, 151)]  # 151: within the partial frame


@torch.inference_mode()
def alone(bundle: Bundle, samples: Tensor, mel: MelSource, part: slice) -> Tensor:
    """The plain path: the clip's tokens and mel frames of some frames, given to the model as a document."""
    codes = bundle.codec.encode(samples[None])
    mel_frames = bundle.mel(samples[None] if mel == "real" else bundle.codec.decode(codes))[:, part]
    target = codes[:, 0, part]
    tokens, shifted = shift(target, None if mel == "masked" else mel_frames)
    logits = bundle.lm.logits(bundle.lm(tokens, shifted))
    return logits.log_softmax(-1).gather(-1, target[..., None])[0, :, 0]


@pytest.mark.parametrize(("start", "stop"), WINDOWS)
@pytest.mark.parametrize("mel", ["real", "decoded", "masked"])
@pytest.mark.parametrize("chunk_frames", [20, 750])
def test_window(bundle: Bundle, clip: Tensor, mel: MelSource, start: int, stop: int | None, chunk_frames: int) -> None:
    """Its log-probabilities are the whole clip's; alone, they are those of a document that begins with it."""
    tokens, logprobs, _ = whole(bundle, clip, mel)
    part = slice(start, stop)
    local = score(bundle, clip, mel=mel, window=Window(start, stop, alone=True), chunk_frames=chunk_frames).window
    assert local is not None and local.alone is not None and local.start == start
    torch.testing.assert_close(local.logprobs, logprobs[part], **TOLERANCE)
    torch.testing.assert_close(local.unigram, bundle.lm.unigram[tokens[part]], **TOLERANCE)
    torch.testing.assert_close(local.alone, alone(bundle, clip, mel, part), **TOLERANCE)
    assert local.nll == pytest.approx(-float(logprobs[part].mean()), abs=2e-4)
    assert local.baseline_nll("alone") == pytest.approx(-float(local.alone.mean()), abs=1e-5)
    assert local.baseline_nll("unigram") == pytest.approx(-float(local.unigram.mean()), abs=1e-5)


@pytest.mark.parametrize("context", [0, 60])
def test_window_over_all_that_is_scored(bundle: Bundle, clip: Tensor, context: int) -> None:
    result = score(bundle, clip, context_frames=context, window=Window(context, alone=True))
    assert result.window is not None and result.window.alone is not None
    assert torch.equal(result.window.logprobs, result.logprobs)
    assert result.window.nll == result.nll
    same = torch.equal(result.window.alone, result.logprobs)
    assert same == (context == 0)  # without a past the two are one, to the bit; with one they differ


def test_window_is_causal(bundle: Bundle, clip: Tensor) -> None:
    """What comes after a window, from its last frame's end on, changes none of its numbers, to the bit."""
    later = clip.clone()
    later[90 * HOP_SAMPLES :] = torch.randn(len(clip) - 90 * HOP_SAMPLES, generator=torch.Generator().manual_seed(1))
    scores = [score(bundle, samples, window=Window(40, 90, alone=True)) for samples in (clip, later)]
    one, other = (result.window for result in scores)
    assert one is not None and other is not None and one.alone is not None and other.alone is not None
    assert torch.equal(one.logprobs, other.logprobs) and torch.equal(one.alone, other.alone)
    assert scores[0].nll != scores[1].nll


def test_window_knows_the_past_and_alone_does_not(bundle: Bundle, clip: Tensor) -> None:
    """Alone, the first token of a window is predicted from BOS, like any document's first token."""
    local = score(bundle, clip, window=Window(60, 90, alone=True)).window
    assert local is not None and local.alone is not None
    assert not torch.allclose(local.logprobs[:10], local.alone[:10], atol=1e-3)
    first = score(bundle, clip, window=Window(0, 1)).logprobs[0]
    target = bundle.codec.encode(clip[None])[0, 0]
    bos = bundle.lm.logits(bundle.lm(torch.tensor([[1024]])))[0, 0].log_softmax(-1)
    assert float(first) == pytest.approx(float(bos[target[0]]), abs=2e-4)
    assert float(local.alone[0]) == pytest.approx(float(bos[target[60]]), abs=2e-4)


@pytest.mark.parametrize(("start", "stop", "edge"), [(150, None, "start"), (0, 152, "stop"), (400, 500, "start")])
def test_window_outside_of_the_clip(bundle: Bundle, clip: Tensor, start: int, stop: int | None, edge: str) -> None:
    with pytest.raises(WindowError, match=r"2\.00 s") as caught:
        score(bundle, clip, window=Window(start, stop, alone=True), chunk_frames=20)
    assert caught.value.edge == edge


@torch.inference_mode()
def distributions(bundle: Bundle, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The plain path: tokens (T,) and the log-probabilities of all of the vocabulary, (T, V)."""
    codes = bundle.codec.encode(samples[None])
    logits = bundle.lm.logits(bundle.lm(*shift(codes[:, 0], bundle.mel(samples[None]))))
    return codes[0, 0], logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("context", [0, 60])
@pytest.mark.parametrize("chunk_frames", [20, 750])
def test_positions_are_those_of_the_distribution(bundle: Bundle, clip: Tensor, context: int, chunk_frames: int) -> None:
    tokens, logprobs = (part[context:] for part in distributions(bundle, clip))
    detail = Detail(spread=True, alternatives=5)
    got = score(bundle, clip, context_frames=context, chunk_frames=chunk_frames, detail=detail)
    more = got.positions
    assert more is not None and more.entropy is not None and more.rank is not None
    assert more.top_tokens is not None and more.top_logprobs is not None
    entropy = -(logprobs.exp() * logprobs).sum(-1)
    torch.testing.assert_close(more.entropy.double(), entropy, rtol=0, atol=1e-3)
    own = logprobs.gather(-1, tokens[:, None])
    for slack, side in ((1e-3, torch.le), (-1e-3, torch.ge)):  # tokens as likely as that may change places
        assert side(more.rank, (logprobs > own - slack).sum(-1) + 1).all()
    assert torch.equal(more.rank == 1, got.correct)
    torch.testing.assert_close(more.top_logprobs.double(), logprobs.topk(5).values, rtol=0, atol=1e-3)
    torch.testing.assert_close(more.top_logprobs.double(), logprobs.gather(-1, more.top_tokens), rtol=0, atol=1e-3)
    hits = more.top_tokens == got.tokens[:, None]
    assert torch.equal(hits.any(-1), more.rank <= 5)
    assert torch.equal(more.top_logprobs[hits], got.logprobs[hits.any(-1)]), "the same number, to the bit"


@pytest.mark.parametrize("detail", [Detail(spread=True), Detail(alternatives=20)])
def test_detail_changes_no_other_number(bundle: Bundle, clip: Tensor, detail: Detail) -> None:
    """To the bit; and what is not asked for is not there."""
    plain, more = score(bundle, clip), score(bundle, clip, detail=detail)
    assert torch.equal(plain.logprobs, more.logprobs) and torch.equal(plain.correct, more.correct)
    assert plain.positions is None and more.positions is not None
    assert (more.positions.entropy is not None) == (more.positions.rank is not None) == detail.spread
    assert (more.positions.top_tokens is not None) == (detail.alternatives > 0)


def test_positions_of_a_known_distribution() -> None:
    """Ties go by number, as argmax has them; a probability of 0 counts nothing in the entropy."""
    logprobs = torch.tensor([[0.25, 0.25, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]]).log()
    more = Positions.of(logprobs, torch.tensor([1, 0]), Detail(spread=True, alternatives=3))
    assert more.entropy is not None and more.rank is not None and more.top_tokens is not None
    assert more.entropy.tolist() == pytest.approx([1.5 * math.log(2), math.log(2)])
    assert more.rank.tolist() == [3, 1]
    assert more.top_tokens.tolist() == [[2, 0, 1], [0, 1, 2]]


@pytest.mark.parametrize(("length", "step"), [(1, 1), (20, 7), (75, 75), (110, 1), (33, 200)])
def test_scan(bundle: Bundle, clip: Tensor, length: int, step: int) -> None:
    """Means over windows of the clip's own log-probabilities, each window within the clip."""
    scored = score(bundle, clip, window=Window(40))
    local = scored.window
    assert local is not None
    scan = local.scan(length, step)
    starts = range(40, 150 - length + 1, step)
    assert (scan.start, scan.length, scan.step, len(scan.nll)) == (40, length, step, len(starts))
    direct = [-float(scored.logprobs[start : start + length].double().mean()) for start in starts]
    assert scan.nll.tolist() == pytest.approx(direct, abs=1e-9)
    counted = [-float(local.unigram[at - 40 : at - 40 + length].double().mean()) for at in starts]
    assert scan.baseline_nll.tolist() == pytest.approx(counted, abs=1e-9)


def test_scan_with_no_room_for_a_window(bundle: Bundle, clip: Tensor) -> None:
    local = score(bundle, clip, window=Window(40)).window
    assert local is not None
    with pytest.raises(WindowError, match=r"1\.48 s, and 1\.47 s") as caught:
        local.scan(111, 1)
    assert caught.value.edge == "stop"


def test_log_likelihood_is_the_sum(bundle: Bundle, clip: Tensor) -> None:
    scored = score(bundle, clip, window=Window(10, 60))
    assert scored.log_likelihood == pytest.approx(-150 * scored.nll)
    assert scored.window is not None and scored.window.log_likelihood == pytest.approx(-50 * scored.window.nll)


def test_finite() -> None:
    good, bad = torch.zeros(3), torch.tensor([0.0, math.nan, 0.0])
    flags = torch.ones(3, dtype=torch.bool)
    assert Score(torch.arange(3), good, flags).finite
    assert not Score(torch.arange(3), bad, flags).finite
    assert not Score(torch.arange(3), good, flags, window=WindowScore(0, good, good, bad)).finite


@pytest.mark.parametrize("samples", [0, 100, HOP_SAMPLES * MIN_FRAMES - 1])
def test_too_short(bundle: Bundle, clip: Tensor, samples: int) -> None:
    with pytest.raises(TooShortError, match="7"):
        score(bundle, clip[:samples])


def test_the_shortest(bundle: Bundle, clip: Tensor) -> None:
    assert len(score(bundle, clip[: HOP_SAMPLES * MIN_FRAMES]).tokens) == MIN_FRAMES


@pytest.mark.parametrize("context", [150, 1000])
def test_nothing_left_after_the_context(bundle: Bundle, clip: Tensor, context: int) -> None:
    with pytest.raises(TooShortError, match=str(context)):
        score(bundle, clip, context_frames=context)


def carried(reader: PromptEncoder) -> int:
    """Numbers that a reader keeps from one chunk to the next."""
    cache = reader.cache
    parts = [cache.stack.keys, cache.stack.values, reader.token, reader.mel, reader.real_tail, reader.decoded_tail]
    if cache.mel is not None:
        parts += [cache.mel.keys, cache.mel.values]
    states = [*reader.encoder_state.tensors, *reader.decoder_state.tensors]
    return sum(part.numel() for part in [*parts, *(tensor for tensor in states if tensor is not None)])


def test_memory_is_flat(bundle: Bundle, clip: Tensor) -> None:
    """By construction: what is kept between chunks has the same size after 20 windows as after half of one."""
    reader = PromptEncoder(bundle, decode=True)
    sizes = set()
    with torch.inference_mode():
        for _ in range(40):
            reader.read(clip[: 25 * HOP_SAMPLES])
            sizes.add(carried(reader))
    assert len(sizes) == 1
    assert reader.cache.length == 1000 and reader.encoder_state.frames == reader.decoder_state.frames == 1000


@pytest.mark.parametrize("masked", [False, True])
def test_prefill_gives_the_score(bundle: Bundle, clip: Tensor, masked: bool) -> None:
    prompt = prefill(bundle, clip, masked=masked)
    scored = score(bundle, clip, mel="masked" if masked else "real")
    assert torch.equal(prompt.tokens, scored.tokens)
    torch.testing.assert_close(prompt.logprobs, scored.logprobs, **TOLERANCE)
    assert prompt.nll == pytest.approx(scored.nll, abs=1e-5)


def test_figures_of_a_score() -> None:
    expected = torch.tensor([0.5, 0.25, 0.125, 0.25])
    result = Score(torch.arange(4), expected.log(), torch.tensor([True, False, False, False]))
    assert result.nll == pytest.approx(2 * math.log(2))
    assert result.perplexity == pytest.approx(4.0)
    assert result.accuracy == 0.25
    assert result.bits_per_second == pytest.approx(2 * FRAME_RATE_HZ)


@pytest.mark.parametrize("frames", [1, 6, 7, 19, 20, 26, 27, 40, 100])
def test_chunks_lose_nothing_and_are_never_too_short(frames: int) -> None:
    samples = torch.arange(frames * HOP_SAMPLES + 5, dtype=torch.float32)
    made = list(chunks(samples.split(777), 20))
    assert torch.equal(torch.cat(made), samples[: frames * HOP_SAMPLES])
    lengths = [len(chunk) / HOP_SAMPLES for chunk in made]
    assert all(length == 20 for length in lengths[:-1])
    assert MIN_FRAMES <= lengths[-1] < 20 + MIN_FRAMES or frames < MIN_FRAMES
