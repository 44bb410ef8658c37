"""A new decoder is its class and a line in the registry: it is built, streams, is stepped, saved and loaded."""

from pathlib import Path
from typing import NamedTuple, Self, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model.checkpoint import Bundle, BundleError, load_bundle, random_bundle, save_bundle
from model.codec.codec import Codec
from model.codec.config import DECODERS, ENCODERS, CodecConfig, DecoderKind, EncoderKind
from model.codec.interface import Decoder
from model.codec.streaming import StreamingDecoder
from model.constants import HOP_SAMPLES, LATENT_DIM, VOCABULARY
from model.inference.backend import backend_for, compiles
from model.inference.generate import generate
from model.inference.prefill import prefill
from model.inference.sampling import SamplingOptions
from tests.support.signals import enliven

FRAMES = 12


class EchoState(NamedTuple):
    level: Tensor  # (B, 320), what the frames so far have left


class EchoDecoder(Decoder):
    """A linear map of each frame, and half of the frame before it: a decoder that forgets nothing."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.entry, self.head = nn.Conv1d(LATENT_DIM, dim, 1), nn.Linear(dim, HOP_SAMPLES)

    @classmethod
    def from_config(cls, config: CodecConfig) -> Self:
        return cls(config.frame_dim)

    def forward(self, latents: Tensor) -> Tensor:
        return self.stream(latents, None)[0]

    def stream(self, latents: Tensor, state: EchoState | None) -> tuple[Tensor, EchoState]:
        frames = self.head(self.entry(latents).transpose(1, 2))  # (B, n, 320)
        level = torch.zeros_like(frames[:, 0]) if state is None else state.level
        made = []
        for frame in frames.unbind(1):
            level = frame + level / 2
            made.append(level)
        return torch.cat(made, 1)[:, None], EchoState(level.clone())


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, speech_like: Tensor) -> Bundle:
    """A bundle with a decoder that nothing but its line in the registry makes known."""
    monkeypatch.setitem(DECODERS, "echo", f"{__name__}:EchoDecoder")
    bundle = random_bundle("tiny", decoder="echo")
    enliven(bundle.codec, speech_like)
    return bundle


def test_it_is_made(echo: Bundle) -> None:
    assert isinstance(echo.codec.decoder, EchoDecoder)
    assert echo.codec.decoder.receptive_field is None  # unless it says otherwise, a prompt is decoded from its start


def test_streaming_is_the_whole(echo: Bundle) -> None:
    codes = torch.randint(0, VOCABULARY, (3, 8, FRAMES), generator=torch.Generator().manual_seed(2))
    whole = echo.codec.decode(codes)
    decoder = StreamingDecoder(echo.codec)
    parts, state = [], decoder.start(3)
    for part in codes.split([1, 4, 1, 6], dim=2):
        made, state = decoder.step(part, state)
        parts.append(made)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-5)


def test_it_is_stepped_with_torch(echo: Bundle, speech_like: Tensor) -> None:
    """Rows at different frames, as the server steps them, make what `generate` makes."""
    options = SamplingOptions(temperature=0.9, seed=4)
    prompts = [prefill(echo, speech_like[: frames * HOP_SAMPLES]) for frames in (20, 30)]
    assert not compiles(echo)
    slots = backend_for(echo, 2)
    for row, prompt in enumerate(prompts):
        slots.join(row, prompt, options)
    made = [slots.step([0, 1]) for _ in range(FRAMES)]
    for row, prompt in enumerate(prompts):
        for frame, expected in zip(made, generate(echo, prompt, frames=FRAMES, options=options), strict=True):
            np.testing.assert_array_equal(frame.codes[row], expected.codes[0].numpy())
            np.testing.assert_allclose(frame.samples[row], expected.samples[0].numpy(), atol=1e-5)


def test_it_is_saved_and_loaded(echo: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, VOCABULARY, (1, 8, FRAMES), generator=torch.Generator().manual_seed(3))
    save_bundle(echo, tmp_path, half=False)
    assert torch.equal(load_bundle(tmp_path).codec.decode(codes), echo.codec.decode(codes))
    monkeypatch.delitem(DECODERS, "echo")
    with pytest.raises(BundleError, match="no decoder 'echo': there are frame, harmonic"):
        load_bundle(tmp_path)


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match="no decoder 'vocos'"):
        CodecConfig(decoder="vocos")
    with pytest.raises(ValueError, match="no encoder 'mimi'"):
        CodecConfig.from_dict({"encoder": "mimi"})


def test_the_command_line_offers_what_is_registered() -> None:
    assert get_args(DecoderKind) == tuple(DECODERS) and get_args(EncoderKind) == tuple(ENCODERS)


@pytest.mark.parametrize("encoder", sorted(ENCODERS))
@pytest.mark.parametrize("decoder", sorted(DECODERS))
def test_every_kind_goes_with_every_other(encoder: str, decoder: str) -> None:
    codec = Codec(
        CodecConfig(
            decoder=decoder, encoder=encoder, n_filters=2, lstm_layers=1, frame_dim=16, frame_blocks=1, pitch_dim=16,
            pitch_blocks=1, encoder_dim=16, encoder_blocks=1,
        )
    ).eval()  # fmt: skip
    codes = codec.encode(torch.zeros(1, 7 * HOP_SAMPLES))
    assert codec.decode(codes).shape == (1, 7 * HOP_SAMPLES)
