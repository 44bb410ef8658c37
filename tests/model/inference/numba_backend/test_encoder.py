"""The compiled encoder against torch's, and against itself in other chunks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.streaming import StreamingEncoder, StreamingError
from model.constants import HOP_SAMPLES
from model.inference.backend import encoder_for
from model.inference.numba_backend.encoder import CompiledEncoder, can_encode
from tests.support.signals import enliven

SETTINGS: list[dict[str, Any]] = [{}, {"lstm_layers": 0}, {"n_filters": 8, "lstm_layers": 2, "codebooks": 4}]


def same_as_torch(codec: Codec, samples: Tensor) -> float:
    """The share of frames with the same codes; a sum within rounding of two entries' middle may choose either."""
    with torch.inference_mode():
        expected, _ = StreamingEncoder(codec).step(samples, StreamingEncoder(codec).start(len(samples)))
    encoder = CompiledEncoder(codec)
    codes, _ = encoder.step(samples, encoder.start(len(samples)))
    assert codes.shape == expected.shape and codes.dtype == torch.int64
    assert len(codes[0, 0].unique()) > 20  # not the same few
    return float((codes == expected).all(1).float().mean())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_codes_are_those_of_torch(make_codec: Any, speech_like: Tensor, settings: dict[str, Any]) -> None:
    samples = torch.stack([speech_like, speech_like.flip(0)])
    assert same_as_torch(make_codec(**settings), samples) > 0.995


def test_codes_of_a_codec_of_full_width(speech_like: Tensor) -> None:
    """As wide as those of the first two editions, with float16 weights as they were stored."""
    torch.manual_seed(0)
    codec = Codec(CodecConfig(decoder="frame", frame_dim=16, frame_blocks=1)).eval().requires_grad_(False)
    enliven(codec, speech_like)
    for parameter in codec.parameters():
        parameter.copy_(parameter.half().float())
    assert same_as_torch(codec, speech_like[None]) > 0.995


def test_chunks_change_no_bit(bundle: Bundle, speech_like: Tensor) -> None:
    encoder = CompiledEncoder(bundle.codec)
    samples = speech_like[None]
    whole, end = encoder.step(samples, encoder.start(1))
    rng = np.random.default_rng(0)
    for _ in range(10):
        state, parts, at = encoder.start(1), [], 0
        while at < samples.shape[1]:
            size = int(rng.choice([1, 2, 3, 5, 16, 17, 40])) * HOP_SAMPLES
            before = state.tensors[0].clone()
            codes, after = encoder.step(samples[:, at : at + size], state)
            assert torch.equal(state.tensors[0], before)
            parts.append(codes)
            state, at = after, at + size
        assert torch.equal(torch.cat(parts, dim=-1), whole)
        assert torch.equal(state.tensors[0], end.tensors[0])
        assert state.frames == end.frames == 300


def test_rows_do_not_meet(bundle: Bundle, speech_like: Tensor) -> None:
    encoder = CompiledEncoder(bundle.codec)
    rows = torch.stack([speech_like, speech_like.flip(0), torch.full_like(speech_like, torch.nan)])
    together, _ = encoder.step(rows, encoder.start(3))
    for row in range(2):
        alone, _ = encoder.step(rows[row : row + 1], encoder.start(1))
        assert torch.equal(together[row], alone[0])


def test_a_code_depends_on_no_later_sample(bundle: Bundle, speech_like: Tensor) -> None:
    encoder = CompiledEncoder(bundle.codec)
    samples = speech_like[None, : 60 * HOP_SAMPLES]
    codes, _ = encoder.step(samples, encoder.start(1))
    changed = samples.clone()
    changed[:, 41 * HOP_SAMPLES :] = torch.randn(19 * HOP_SAMPLES, generator=torch.Generator().manual_seed(0))
    others, _ = encoder.step(changed, encoder.start(1))
    assert torch.equal(codes[..., :41], others[..., :41])
    assert not torch.equal(codes[..., 41:], others[..., 41:])


def test_a_codec_that_was_trained_further(make_codec: Any, speech_like: Tensor) -> None:
    codec = make_codec()
    before, _ = CompiledEncoder(codec).step(speech_like[None], CompiledEncoder(codec).start(1))
    with torch.no_grad():
        codec.encoder.model[0].conv.conv.weight.mul_(-1.0)
    assert same_as_torch(codec, speech_like[None]) > 0.995
    after, _ = CompiledEncoder(codec).step(speech_like[None], CompiledEncoder(codec).start(1))
    assert not torch.equal(before, after)


def test_what_does_not_fit_is_refused(bundle: Bundle, make_codec: Any) -> None:
    encoder = CompiledEncoder(bundle.codec)
    for rows, samples in ((2, HOP_SAMPLES), (1, 100), (1, 0)):
        with pytest.raises(StreamingError):
            encoder.step(torch.zeros(rows, samples), encoder.start(1))
    mirrored = make_codec(pad_mode="reflect")
    assert not can_encode(mirrored)
    assert isinstance(encoder_for(mirrored), StreamingEncoder)
    assert isinstance(encoder_for(bundle.codec), CompiledEncoder)
    with pytest.raises(ValueError, match="compiled"):
        CompiledEncoder(mirrored)
