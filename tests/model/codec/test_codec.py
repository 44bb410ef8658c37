"""The codec: the `encodec` package's path with the same weights, causal to the bit, strict about its settings."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.codec.codec import Codec
from model.codec.config import CodecConfig
from model.codec.encodec_import import import_encodec
from model.constants import HOP_SAMPLES, SAMPLE_RATE_HZ, VOCABULARY

FRAMES = 14
KINDS = [(decoder, pad_mode) for decoder in ("frame", "harmonic", "seanet") for pad_mode in ("constant", "reflect")]


@pytest.fixture(scope="module")
def samples() -> Tensor:
    return torch.randn(2, HOP_SAMPLES * FRAMES, generator=torch.Generator().manual_seed(4)) * 0.2


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def codec(request: pytest.FixtureRequest) -> Codec:
    made: Codec = request.getfixturevalue("make_codec")(*request.param)
    return made


def packages_model(codec: Codec) -> Any:
    """The package's whole model with the same weights; a decoder of ours takes the place of its own."""
    encodec = import_encodec()
    config = codec.config
    seanet: dict[str, Any] = dict(
        channels=1, dimension=128, n_filters=config.n_filters, ratios=[8, 5, 4, 2], norm="none", causal=True,
        pad_mode=config.pad_mode, lstm=config.lstm_layers,
    )  # fmt: skip
    model = encodec.EncodecModel(
        encodec.modules.SEANetEncoder(**seanet),
        codec.decoder if config.decoder != "seanet" else encodec.modules.SEANetDecoder(**seanet),
        encodec.quantization.ResidualVectorQuantizer(dimension=128, n_q=8, bins=VOCABULARY),
        target_bandwidths=[0.75, 1.5, 3.0, 6.0],
        sample_rate=SAMPLE_RATE_HZ,
        channels=1,
        normalize=False,
        segment=None,
    )
    model.load_state_dict(codec.state_dict())
    return model.eval()


@pytest.mark.parametrize(("bandwidth_kbps", "books"), [(0.75, 1), (1.5, 2), (3.0, 4), (6.0, 8)])
def test_equals_the_package(codec: Codec, samples: Tensor, bandwidth_kbps: float, books: int) -> None:
    model = packages_model(codec)
    model.set_target_bandwidth(bandwidth_kbps)
    with torch.no_grad():
        ((wanted, _),) = model.encode(samples[:, None])
        made = codec.encode(samples)
        assert made.shape == (2, 8, FRAMES)
        assert made.dtype == torch.int64
        assert torch.equal(made[:, :books], wanted)
        sound = model.decode([(wanted, None)])[:, 0]
    assert sound.std() > 1e-2
    torch.testing.assert_close(codec.decode(made[:, :books]), sound, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frame", range(FRAMES))
def test_encoder_is_blind_to_the_future(make_codec: Any, samples: Tensor, frame: int) -> None:
    """EnCodec's token t depends on samples before 320 (t + 1) and on no more: latents and codes equal to the bit."""
    codec = make_codec("frame", "constant")
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) :] = 0.7
    seen = slice(0, frame + 1)
    assert torch.equal(codec.encode(changed)[..., seen], codec.encode(samples)[..., seen])
    before, after = codec.encoder(samples[:, None]), codec.encoder(changed[:, None])
    assert torch.equal(before[..., seen], after[..., seen])


@pytest.mark.parametrize("frame", range(FRAMES))
def test_encoder_hears_the_last_sample_of_the_frame(make_codec: Any, samples: Tensor, frame: int) -> None:
    """So the bound above is the tightest."""
    codec = make_codec("frame", "constant")
    changed = samples.clone()
    changed[:, HOP_SAMPLES * (frame + 1) - 1] += 1.0
    difference = (codec.encoder(samples[:, None]) - codec.encoder(changed[:, None])).abs().amax((0, 1))
    assert difference[frame] > 1e-4
    assert not difference[:frame].any()


def test_reflection_reaches_seven_frames_and_no_more(make_codec: Any, samples: Tensor) -> None:
    codec = make_codec("seanet", "reflect")
    whole = codec.encoder(samples[:, None])
    for frame in range(FRAMES):
        changed = samples.clone()
        changed[:, HOP_SAMPLES * (frame + 1) :] = 0.7
        same = torch.equal(codec.encoder(changed[:, None])[..., : frame + 1], whole[..., : frame + 1])
        assert same == (frame >= 6), f"frame {frame}"  # the first seven frames are mirrored into each other


@pytest.mark.parametrize("decoder", ["frame", "harmonic", "seanet"])
@pytest.mark.parametrize("frame", range(FRAMES))
def test_decoder_is_blind_to_later_codes(make_codec: Any, decoder: str, frame: int) -> None:
    codec = make_codec(decoder, "constant")
    codes = torch.randint(0, VOCABULARY, (2, 8, FRAMES), generator=torch.Generator().manual_seed(5))
    changed = codes.clone()
    changed[..., frame + 1 :] = (changed[..., frame + 1 :] + 1) % VOCABULARY
    heard = slice(0, HOP_SAMPLES * (frame + 1))
    assert torch.equal(codec.decode(changed)[:, heard], codec.decode(codes)[:, heard])
    changed = codes.clone()
    changed[..., frame] = (changed[..., frame] + 1) % VOCABULARY
    moved = (codec.decode(changed) != codec.decode(codes)).any(0)
    assert moved[heard][-HOP_SAMPLES:].any()
    assert not moved[: HOP_SAMPLES * frame].any()


def test_a_trailing_part_of_a_frame_is_dropped(codec: Codec, samples: Tensor) -> None:
    short = 9 * HOP_SAMPLES
    assert torch.equal(codec.encode(samples[:, : short + 319]), codec.encode(samples[:, :short]))


def test_dequantize_is_the_sum_of_the_codebooks(codec: Codec) -> None:
    codes = torch.randint(0, VOCABULARY, (2, 8, 5), generator=torch.Generator().manual_seed(6))
    books = codec.codebooks()
    wanted = torch.stack([books[k][codes[:, k]] for k in range(8)]).sum(0).transpose(1, 2)
    torch.testing.assert_close(codec.dequantize(codes), wanted, rtol=0, atol=1e-5)


def test_settings_make_the_round_trip() -> None:
    config = CodecConfig(decoder="seanet", n_filters=4)
    assert CodecConfig.from_dict(config.to_dict()) == config


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n_filter, width"):
        CodecConfig.from_dict({"n_filter": 4, "width": 3})


def test_metas_shape_is_the_packages() -> None:
    """Names and shapes of the 24 kHz model, with weight norm folded and 8 of 32 codebooks."""
    names = Codec(CodecConfig.meta()).state_dict()
    assert names["encoder.model.0.conv.conv.weight"].shape == (32, 1, 7)
    assert names["encoder.model.15.conv.conv.weight"].shape == (128, 512, 7)
    assert sum(name.endswith("_codebook.embed") for name in names) == 8
