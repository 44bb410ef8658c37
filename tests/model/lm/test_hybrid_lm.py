"""The hybrid model: causal from the samples on, to the bit; cached = uncached; and it does listen to the mel."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.constants import HOP_SAMPLES, MEL_BANDS, MEL_LEFT_SAMPLES, VOCABULARY
from model.lm.config import PRESETS, DecoderConfig
from model.lm.hybrid_lm import BOS, HybridLM, LMCache, shift
from model.lm.kv_cache import KVCache

FRAMES = 14
REACH = 192  # samples of the next frame that a centred window of 1024 sees


def caches(cache: LMCache) -> Iterator[KVCache]:
    yield cache.stack
    if cache.mel is not None:
        yield cache.mel


def new_poisoned_cache(model: HybridLM, rows: int) -> LMCache:
    cache = model.new_cache(rows)
    for part in caches(cache):
        part.keys.fill_(torch.nan)
        part.values.fill_(torch.nan)
    return cache


@pytest.fixture(scope="module")
def model() -> HybridLM:
    """Small, with a window that the sequences below pass many times."""
    torch.manual_seed(3)
    config = DecoderConfig(dim=32, layers=2, heads=2, window=9, mel_dim=16, mel_layers=1, mel_out=8, fine_dim=16)
    model = HybridLM(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(6)
    model.mel_mean.normal_()
    model.mel_std.uniform_(0.5, 2.0)
    return model.double()  # see tests/model/lm/test_transformer.py


@pytest.fixture(scope="module")
def sequence() -> tuple[Tensor, Tensor, Tensor]:
    """Input tokens (2, 40) with a BOS in the middle, mel frames (2, 40, 64), masked (2, 40)."""
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, VOCABULARY, (2, 40), generator=generator)
    tokens[:, 0] = BOS
    tokens[1, 22] = BOS
    masked = torch.rand(2, 40, generator=generator) < 0.2
    return tokens, torch.randn(2, 40, MEL_BANDS, generator=generator).double(), masked


@pytest.mark.parametrize("sizes", [[1] * 40, [9, 31], [3] * 13 + [1], [30] + [1] * 10, [40]], ids=lambda s: f"{s[0]}-")
@pytest.mark.parametrize("source", ["mel", "no mel", "masked"])
def test_cached_equals_uncached(
    model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor], sizes: list[int], source: str
) -> None:
    tokens, mel_frames, masked = sequence
    mel = None if source == "no mel" else mel_frames
    gaps = masked if source == "masked" else None
    whole = model(tokens, mel, gaps)
    cache = new_poisoned_cache(model, 2)
    parts, start = [], 0
    for size in sizes:
        now = slice(start, start + size)
        gap = None if gaps is None else gaps[:, now]
        parts.append(model(tokens[:, now], None if mel is None else mel[:, now], gap, cache))
        start += size
    assert cache.length == 40
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-9)


def test_repeated_cache(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, _ = sequence
    one = new_poisoned_cache(model, 1)
    model(tokens[:1, :25], mel_frames[:1, :25], cache=one)
    many = one.repeated(4)
    got = model(tokens[:1, 25:].expand(4, -1), mel_frames[:1, 25:].expand(4, -1, -1), cache=many)
    whole = model(tokens[:1], mel_frames[:1])[:, 25:]
    torch.testing.assert_close(got, whole.expand(4, -1, -1), rtol=0, atol=1e-9)


def centred(bundle: Bundle, samples: Tensor) -> Tensor:
    """The mel that must not be used: windows centred on the start of each frame, as Whisper's and librosa's are."""
    left = torch.cat([samples.new_zeros(1, MEL_LEFT_SAMPLES - REACH), samples[:, :REACH]], dim=1)
    made: Tensor = bundle.mel(torch.nn.functional.pad(samples[:, REACH:], (0, REACH)), left)
    return made


def everything(bundle: Bundle, samples: Tensor, leaky: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Samples (1, N) -> codes (1, 8, T), mel frames (1, T, 64), logits (1, T, 1024)"""
    codes = bundle.codec.encode(samples)
    mel_frames = centred(bundle, samples) if leaky else bundle.mel(samples)
    return codes, mel_frames, bundle.lm.logits(bundle.lm(*shift(codes[:, 0], mel_frames)))


@pytest.mark.parametrize("frame", range(FRAMES))
def test_causal_from_the_samples_on(bundle: Bundle, speech_like: Tensor, frame: int) -> None:
    """What comes after frame t moves no code and no slice up to t, and no logit up to position t + 1, by one bit."""
    samples = speech_like[None, 9600 : 9600 + FRAMES * HOP_SAMPLES]
    changed = samples.clone()
    future = changed[:, HOP_SAMPLES * (frame + 1) :]
    future.copy_(torch.rand(future.shape, generator=torch.Generator().manual_seed(frame)) - 0.5)
    codes, mel_frames, logits = everything(bundle, samples)
    codes_, mel_frames_, logits_ = everything(bundle, changed)
    assert len(codes[0, 0].unique()) > 4  # a codec that always says the same would pass
    assert torch.equal(codes[..., : frame + 1], codes_[..., : frame + 1])
    assert torch.equal(mel_frames[:, : frame + 1], mel_frames_[:, : frame + 1])
    assert torch.equal(logits[:, : frame + 2], logits_[:, : frame + 2])
    if frame < FRAMES - 2:  # the change is one that is heard
        assert not torch.equal(mel_frames[:, frame + 1], mel_frames_[:, frame + 1])
        assert not torch.equal(logits[:, frame + 2 :], logits_[:, frame + 2 :])


@pytest.mark.parametrize("frame", range(0, FRAMES - 1, 3))
def test_a_centred_mel_would_leak(bundle: Bundle, speech_like: Tensor, frame: int) -> None:
    """The test above can fail: with a centred mel the logits of token t + 1 know samples of frame t + 1."""
    samples = speech_like[None, 9600 : 9600 + FRAMES * HOP_SAMPLES]
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) :] = 0.5
    logits, logits_ = (everything(bundle, x, leaky=True)[2] for x in (samples, changed))
    assert not torch.equal(logits[:, frame + 1], logits_[:, frame + 1])
    assert torch.equal(logits[:, : frame + 1], logits_[:, : frame + 1])  # it leaks one frame, not more


def test_the_mel_is_used(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, _ = sequence
    louder = mel_frames.clone()
    louder[:, 12] += 1.0
    before, after = model(tokens, mel_frames), model(tokens, louder)
    assert torch.equal(before[:, :12], after[:, :12])
    assert (before[:, 12] - after[:, 12]).abs().max() > 1e-2


def test_masked_slices_are_not_read(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, masked = sequence
    noise = torch.where((masked | (tokens == BOS))[..., None], torch.full_like(mel_frames, torch.nan), mel_frames)
    assert torch.equal(model(tokens, mel_frames, masked), model(tokens, noise, masked))
    assert not torch.equal(model(tokens, mel_frames, masked), model(tokens, mel_frames))


def test_no_mel_is_all_masked(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, masked = sequence
    assert torch.equal(model(tokens), model(tokens, mel_frames, torch.ones_like(masked)))


def test_the_learned_mask_is_what_stands_for_a_gap(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, _, _ = sequence
    assert model.mel is not None
    before = model(tokens)
    model.mel.mask.add_(1.0)
    after = model(tokens)
    model.mel.mask.sub_(1.0)
    assert not torch.equal(before, after)


def test_mel_is_normalised_by_the_buffers(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, _ = sequence
    mean, std = model.mel_mean.clone(), model.mel_std.clone()
    before = model(tokens, mel_frames * std + mean)
    model.mel_mean.zero_()
    model.mel_std.fill_(1.0)
    after = model(tokens, mel_frames)
    model.mel_mean.copy_(mean)
    model.mel_std.copy_(std)
    torch.testing.assert_close(before, after, rtol=0, atol=1e-4)


def test_a_model_without_mel_has_none(sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    tokens, mel_frames, masked = sequence
    plain = HybridLM(DecoderConfig(dim=32, layers=1, heads=2, window=9, mel=False, fine_dim=16))
    assert plain.new_cache(1).mel is None
    assert not any(name.startswith("mel.") for name in plain.state_dict())
    assert torch.equal(plain(tokens), plain(tokens, mel_frames, masked))


def test_shift() -> None:
    tokens, mel_frames = torch.tensor([[5, 6, 7]]), torch.arange(3.0)[None, :, None].expand(1, 3, 64) + 1
    inputs, late = shift(tokens, mel_frames)
    assert inputs.tolist() == [[BOS, 5, 6]]
    assert late is not None and late[0, :, 0].tolist() == [0.0, 1.0, 2.0]
    assert shift(tokens, None)[1] is None


@pytest.mark.parametrize(
    ("preset", "low", "high"),
    [("hybrid-4m", 3.5e6, 4.5e6), ("gpt-s", 3.3e6, 4.1e6), ("gpt-l", 36e6, 44e6), ("tiny", 0, 2e5)],
)
def test_presets_have_the_papers_sizes(preset: str, low: float, high: float) -> None:
    with torch.device("meta"):  # sizes only
        model = HybridLM(PRESETS[preset])
    assert low < model.parameter_count() < high
    fine = sum(parameter.numel() for parameter in model.fine.parameters())
    assert model.parameter_count(fine=True) == model.parameter_count() + fine


def test_logits_are_of_the_vocabulary(model: HybridLM, sequence: tuple[Tensor, Tensor, Tensor]) -> None:
    assert model.logits(model(sequence[0])).shape == (2, 40, VOCABULARY)


@pytest.mark.parametrize(
    "wrong", [{"dim": 30, "heads": 4}, {"dim": 12, "heads": 4}, {"mel_out": 256}, {"mel_dim": 63}], ids=str
)
def test_widths_that_do_not_divide(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        DecoderConfig(**wrong)


def test_config_round_trip_and_unknown_keys() -> None:
    config = PRESETS["tiny"]
    assert DecoderConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="depth"):
        DecoderConfig.from_dict(config.to_dict() | {"depth": 3})
