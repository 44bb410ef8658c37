"""The closed loop: repeatable, independent of its neighbours, and true to what a plain forward over it says."""

from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import StreamingDecoder
from model.constants import HOP_SAMPLES
from model.inference.generate import generate
from model.inference.prefill import TAIL_FRAMES, prefill
from model.inference.sampling import SamplingOptions
from model.inference.scoring import MIN_FRAMES, TooShortError
from model.inference.types import GeneratedFrame, LoopMel, PromptState
from model.lm.hybrid_lm import shift

PROMPT, MADE = 30, 40  # frames: together they pass the window of 48
OPTIONS = SamplingOptions(temperature=0.9, top_k=200, top_p=0.95, seed=12)


@pytest.fixture(scope="module")
def prompt(speech_like: Tensor) -> Tensor:
    return speech_like[: PROMPT * HOP_SAMPLES]


@pytest.fixture(scope="module")
def reference(speech_like: Tensor) -> Tensor:
    """What truly follows the prompt."""
    return speech_like[PROMPT * HOP_SAMPLES : (PROMPT + MADE) * HOP_SAMPLES]


def made(bundle: Bundle, prompt: Tensor | PromptState, **settings: Any) -> list[GeneratedFrame]:
    defaults: dict[str, Any] = {"frames": MADE, "options": OPTIONS}
    return list(generate(bundle, prompt, **(defaults | settings)))


def joined(frames: list[GeneratedFrame], name: str, dim: int) -> Tensor:
    return torch.stack([getattr(frame, name) for frame in frames], dim)


def same(one: list[GeneratedFrame], two: list[GeneratedFrame]) -> bool:
    names = ("codes", "logprobs", "fine_logprobs", "samples", "mel")
    return all(torch.equal(getattr(a, n), getattr(b, n)) for a, b in zip(one, two, strict=True) for n in names)


def test_shapes(bundle: Bundle, prompt: Tensor) -> None:
    frames = made(bundle, prompt, n=3, frames=4, codebooks=4)
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    for frame in frames:
        assert frame.codes.shape == (3, 4) and frame.codes.dtype == torch.int64
        assert frame.logprobs.shape == (3,) and frame.fine_logprobs.shape == (3, 3)
        assert frame.samples.shape == (3, HOP_SAMPLES) and frame.mel.shape == (3, 64)


def test_same_seed_same_bytes(bundle: Bundle, prompt: Tensor) -> None:
    first = made(bundle, prompt, n=2)
    torch.manual_seed(99)  # torch's own generator has no part in it
    assert same(first, made(bundle, prompt, n=2))
    other = made(bundle, prompt, n=2, options=SamplingOptions(temperature=0.9, seed=13))
    assert not torch.equal(joined(first, "codes", 2), joined(other, "codes", 2))


def test_choices_differ_and_do_not_depend_on_n(bundle: Bundle, prompt: Tensor) -> None:
    five = joined(made(bundle, prompt, n=5), "codes", 2)  # (5, 8, T)
    assert not any(torch.equal(five[a], five[b]) for a in range(5) for b in range(a))
    for n in (1, 2, 4):
        frames = made(bundle, prompt, n=n)
        assert torch.equal(joined(frames, "codes", 2), five[:n])


def test_longer_begins_like_shorter(bundle: Bundle, prompt: Tensor) -> None:
    assert same(made(bundle, prompt, frames=10), made(bundle, prompt)[:10])


def test_a_prompt_read_once_serves_many(bundle: Bundle, prompt: Tensor) -> None:
    state = prefill(bundle, prompt)
    first = made(bundle, state, n=2)
    made(bundle, state, options=SamplingOptions(seed=5))  # leaves no trace in the prompt
    assert same(first, made(bundle, state, n=2))
    assert same(first, made(bundle, prompt, n=2))


@pytest.mark.parametrize("codebooks", [1, 2, 8])
@pytest.mark.parametrize("mel", ["decoded", "masked", "real"])
def test_teacher_forcing_gives_the_returned_logprobs(
    bundle: Bundle, prompt: Tensor, reference: Tensor, mel: LoopMel, codebooks: int
) -> None:
    """One plain forward over the prompt, the made codes and the mel frames that were fed: no cache, no streaming."""
    given = reference if mel == "real" else None
    frames = made(bundle, prompt, n=2, mel=mel, codebooks=codebooks, reference=given)
    codes, fed = joined(frames, "codes", 1), joined(frames, "mel", 1)  # (2, T, k), (2, T, 64)
    with torch.inference_mode():
        tokens = torch.cat([bundle.codec.encode(prompt[None])[:, 0].expand(2, -1), codes[..., 0]], 1)
        mel_frames = torch.cat([bundle.mel(prompt[None]).expand(2, -1, -1), fed], 1)
        hidden = bundle.lm(*shift(tokens, None if mel == "masked" else mel_frames))[:, PROMPT:]
        coarse = bundle.lm.logits(hidden).log_softmax(-1).gather(-1, codes[..., :1])[..., 0]
        torch.testing.assert_close(joined(frames, "logprobs", 1), coarse, rtol=0, atol=2e-4)
        got = joined(frames, "fine_logprobs", 1)
        assert got.shape == (2, MADE, codebooks - 1)
        if codebooks > 1:
            last = bundle.codec.encode(prompt[None])[:, :codebooks, -1].expand(2, 1, -1)
            before = torch.cat([last, codes[:, :-1]], 1)
            fine = bundle.lm.fine(hidden, codes, before).log_softmax(-1).gather(-1, codes[..., 1:, None])[..., 0]
            torch.testing.assert_close(got, fine, rtol=0, atol=2e-4)


@pytest.mark.parametrize("codebooks", [2, 8])
def test_the_loop_is_closed(bundle: Bundle, prompt: Tensor, codebooks: int) -> None:
    """The samples are those of prompt and continuation decoded as one clip; the mel frames fed are of these samples."""
    frames = made(bundle, prompt, n=2, codebooks=codebooks)
    with torch.inference_mode():
        before = bundle.codec.encode(prompt[None])[:, :codebooks].expand(2, -1, -1)
        whole = bundle.codec.decode(torch.cat([before, joined(frames, "codes", 2)], 2))
        mel_frames = bundle.mel(whole)
    samples = joined(frames, "samples", 1).flatten(1)
    torch.testing.assert_close(samples, whole[:, PROMPT * HOP_SAMPLES :], rtol=0, atol=1e-5)
    torch.testing.assert_close(joined(frames, "mel", 1), mel_frames[:, PROMPT:], rtol=0, atol=1e-3)


def test_the_model_hears_what_it_makes(bundle: Bundle, prompt: Tensor) -> None:
    """The same seed goes another way when the mel frames are withheld."""
    heard, deaf = (made(bundle, prompt, mel=mel) for mel in ("decoded", "masked"))
    assert not torch.equal(joined(heard, "logprobs", 0), joined(deaf, "logprobs", 0))


def test_real_takes_the_reference(bundle: Bundle, prompt: Tensor, reference: Tensor) -> None:
    frames = made(bundle, prompt, n=2, mel="real", reference=reference)
    wanted = bundle.mel(torch.cat([prompt, reference])[None])[:, PROMPT:]
    torch.testing.assert_close(joined(frames, "mel", 1), wanted.expand(2, -1, -1), rtol=0, atol=1e-5)


def test_greedy_takes_the_likeliest(bundle: Bundle, prompt: Tensor) -> None:
    greedy = SamplingOptions(temperature=0.0)
    frames = made(bundle, prompt, n=2, options=greedy, frames=15)
    codes = joined(frames, "codes", 1)
    assert torch.equal(codes[0], codes[1])
    drawn = made(bundle, prompt, frames=1)
    assert float(frames[0].logprobs[0]) >= float(drawn[0].logprobs[0])
    assert same(frames, made(bundle, prompt, n=2, options=SamplingOptions(temperature=0.0, seed=8), frames=15))


def test_a_part_of_a_frame_is_left_out(bundle: Bundle, prompt: Tensor, reference: Tensor) -> None:
    longer = torch.cat([prompt, reference[: HOP_SAMPLES - 1]])
    assert same(made(bundle, prompt, frames=5), made(bundle, longer, frames=5))


def test_inference_mode_does_not_leak_to_the_caller(bundle: Bundle, prompt: Tensor) -> None:
    frames = generate(bundle, prompt, frames=3, options=OPTIONS)
    next(frames)
    assert not torch.is_inference_mode_enabled()
    assert isinstance(frames, Generator)
    frames.close()
    assert not torch.is_inference_mode_enabled()


def test_the_loop_runs_past_many_windows(bundle: Bundle, prompt: Tensor) -> None:
    frames = made(bundle, prompt, frames=160, n=2)
    assert all(bool(frame.samples.isfinite().all()) for frame in frames)
    assert len(joined(frames, "codes", 1)[0, 100:, 0].unique()) > 5


@pytest.mark.parametrize("count", [0, MIN_FRAMES - 1])
def test_too_short_a_prompt(bundle: Bundle, prompt: Tensor, count: int) -> None:
    with pytest.raises(TooShortError, match=str(count)):
        made(bundle, prompt[: count * HOP_SAMPLES + 3])


def test_the_shortest_prompt(bundle: Bundle, prompt: Tensor) -> None:
    assert len(made(bundle, prompt[: MIN_FRAMES * HOP_SAMPLES], frames=3)) == 3


@pytest.mark.parametrize("codebooks", [0, 9, -1])
def test_codebooks_out_of_range(bundle: Bundle, prompt: Tensor, codebooks: int) -> None:
    with pytest.raises(ValueError, match="codebooks"):
        made(bundle, prompt, codebooks=codebooks)


def test_reference_and_real_belong_together(bundle: Bundle, prompt: Tensor, reference: Tensor) -> None:
    with pytest.raises(ValueError, match="reference"):
        made(bundle, prompt, mel="real")
    with pytest.raises(ValueError, match="reference"):
        made(bundle, prompt, mel="decoded", reference=reference)
    with pytest.raises(ValueError, match="39 frames"):
        made(bundle, prompt, mel="real", reference=reference[:-1])


def test_a_prompt_read_for_something_else(bundle: Bundle, prompt: Tensor) -> None:
    with pytest.raises(ValueError, match="another mel source"):
        made(bundle, prefill(bundle, prompt), mel="masked")
    with pytest.raises(ValueError, match="another mel source"):
        made(bundle, prefill(bundle, prompt, codebooks=4), codebooks=8)
    assert made(bundle, prefill(bundle, prompt, codebooks=4), frames=1)[0].codes.shape == (1, 4)


def test_a_prompt_takes_the_memory_that_it_tells(bundle: Bundle, prompt: Tensor) -> None:
    """Servers keep many, up to so many bytes: a view of a chunk would keep the chunk."""
    state = prefill(bundle, prompt)
    rings = [ring for ring in (state.cache.mel, state.cache.stack) if ring is not None]
    held = [state.tokens, state.logprobs, state.codes, state.mel, state.tail, state.real_tail, *state.codec.tensors]
    held += [part for ring in rings for part in (ring.keys, ring.values)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == state.nbytes


def test_only_the_end_of_a_prompt_is_decoded(bundle: Bundle, speech_like: Tensor) -> None:
    """And the state after it is that of decoding all of it."""
    samples = speech_like[: 200 * HOP_SAMPLES]
    prompt = prefill(bundle, samples)
    decoder = StreamingDecoder(bundle.codec)
    past = bundle.codec.decoder.receptive_field
    assert past is not None and past + TAIL_FRAMES < 200
    with torch.inference_mode():
        made, state = decoder.step(bundle.codec.encode(samples[None]), decoder.start(1))
    torch.testing.assert_close(prompt.tail, made[:, -prompt.tail.shape[1] :], atol=1e-5, rtol=0)
    for ours, whole in zip(prompt.codec.tensors, state.tensors, strict=True):
        torch.testing.assert_close(ours, whole, atol=1e-5, rtol=1e-5)
