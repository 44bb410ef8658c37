"""Streaming = whole, for all decoders and both ways to pad, any chunks, any rows."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.codec.codec import Codec
from model.codec.config import DECODERS
from model.codec.decoders.harmonic import HarmonicDecoder
from model.codec.decoders.source_filter import SourceFilterDecoder
from model.codec.interface import map_tensors
from model.codec.seanet import PRIMING_FRAMES
from model.codec.streaming import StreamingDecoder, StreamingEncoder, StreamingError, StreamState
from model.constants import HOP_SAMPLES, VOCABULARY

TOLERANCE = 1e-5  # float32 sums in another order
SUNG = 1e-4  # the same where there are oscillators: a pitch that rounds otherwise turns the phase from then on
FRAMES = 24

chunkings = st.lists(st.integers(1, 9), min_size=1, max_size=FRAMES)  # the last chunk takes what is left
random_chunks = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=sorted(DECODERS))
def codec(request: pytest.FixtureRequest, pad_mode: str) -> Codec:
    made: Codec = request.getfixturevalue("make_codec")(request.param, pad_mode)
    return made


@pytest.fixture(params=["constant", "reflect"])
def pad_mode(request: pytest.FixtureRequest) -> str:
    mode: str = request.param
    return mode


def close(codec: Codec, made: Tensor, wanted: Tensor) -> None:
    tolerance = SUNG if isinstance(codec.decoder, HarmonicDecoder | SourceFilterDecoder) else TOLERANCE
    torch.testing.assert_close(made, wanted, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return torch.randint(0, VOCABULARY, (3, 8, FRAMES), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def samples() -> Tensor:
    return torch.randn(3, HOP_SAMPLES * FRAMES, generator=torch.Generator().manual_seed(3)) * 0.2


def parts(sizes: Sequence[int], pad_mode: str, frames: int = FRAMES) -> Iterator[slice]:
    """Frames cut into chunks; with reflection the first one is long enough."""
    start = 0
    for index, size in enumerate([*sizes, frames]):
        stop = min(start + (size + PRIMING_FRAMES - 1 if index == 0 and pad_mode == "reflect" else size), frames)
        if stop > start:
            yield slice(start, stop)
        start = stop


def of_samples(part: slice) -> slice:
    return slice(part.start * HOP_SAMPLES, part.stop * HOP_SAMPLES)


def decode(decoder: StreamingDecoder, codes: Tensor, cuts: Iterator[slice]) -> Tensor:
    state, made = decoder.start(len(codes)), []
    for part in cuts:
        chunk, state = decoder.step(codes[:, :, part], state)
        made.append(chunk)
    assert state.frames == codes.shape[-1]
    return torch.cat(made, -1)


def encode(encoder: StreamingEncoder, samples: Tensor, cuts: Iterator[slice]) -> Tensor:
    state, made = encoder.start(len(samples)), []
    for part in cuts:
        chunk, state = encoder.step(samples[:, of_samples(part)], state)
        made.append(chunk)
    assert state.frames * HOP_SAMPLES == samples.shape[-1]
    return torch.cat(made, -1)


@pytest.mark.parametrize("sizes", [(1,) * FRAMES, (FRAMES,), (2, 1, 6, 7, 8), (17, 1, 1)], ids=str)
class TestFixedChunks:
    def test_decode(self, codec: Codec, pad_mode: str, codes: Tensor, sizes: tuple[int, ...]) -> None:
        whole = codec.decode(codes)
        assert whole.std() > 1e-2
        made = decode(StreamingDecoder(codec), codes, parts(sizes, pad_mode))
        close(codec, made, whole)

    def test_encode(self, codec: Codec, pad_mode: str, samples: Tensor, sizes: tuple[int, ...]) -> None:
        whole = codec.encode(samples)
        assert len(whole[:, 0].unique()) > FRAMES  # or equality would say little
        assert torch.equal(encode(StreamingEncoder(codec), samples, parts(sizes, pad_mode)), whole)


@given(sizes=chunkings)
@random_chunks
def test_decode_in_any_chunks(codec: Codec, pad_mode: str, codes: Tensor, sizes: list[int]) -> None:
    made = decode(StreamingDecoder(codec), codes, parts(sizes, pad_mode))
    close(codec, made, codec.decode(codes))


@given(sizes=chunkings)
@random_chunks
def test_encode_in_any_chunks(codec: Codec, pad_mode: str, samples: Tensor, sizes: list[int]) -> None:
    assert torch.equal(encode(StreamingEncoder(codec), samples, parts(sizes, pad_mode)), codec.encode(samples))


@pytest.mark.parametrize("books", [1, 2, 4])
def test_decode_with_fewer_codebooks(codec: Codec, pad_mode: str, codes: Tensor, books: int) -> None:
    made = decode(StreamingDecoder(codec), codes[:, :books], parts((3, 1, 1, 5), pad_mode))
    close(codec, made, codec.decode(codes[:, :books]))


def test_a_row_alone_is_the_row_in_a_batch(codec: Codec, pad_mode: str, codes: Tensor, samples: Tensor) -> None:
    decoder, encoder = StreamingDecoder(codec), StreamingEncoder(codec)
    sounds = decode(decoder, codes, parts((2, 1, 4), pad_mode))
    tokens = encode(encoder, samples, parts((2, 1, 4), pad_mode))
    for row in range(len(codes)):
        one = slice(row, row + 1)
        alone = decode(decoder, codes[one], parts((2, 1, 4), pad_mode))
        close(codec, alone, sounds[one])
        assert torch.equal(encode(encoder, samples[one], parts((2, 1, 4), pad_mode)), tokens[one])


def test_a_row_does_not_hear_its_neighbours(codec: Codec, codes: Tensor, samples: Tensor) -> None:
    """To the bit, and also when the neighbour's state and input are not finite."""
    decoder, encoder = StreamingDecoder(codec), StreamingEncoder(codec)
    first, rest = slice(0, 8), slice(8, FRAMES)
    _, state = decoder.step(codes[:, :, first], decoder.start(3))
    wanted, _ = decoder.step(codes[:, :, rest], state)
    other = codes.clone()
    other[1] = 7
    got, _ = decoder.step(other[:, :, rest], with_row_of_nan(state, 1))
    assert torch.equal(got[0::2], wanted[0::2])
    assert got[1, 0].isnan()

    _, state = encoder.step(samples[:, of_samples(first)], encoder.start(3))
    tokens, _ = encoder.step(samples[:, of_samples(rest)], state)
    broken = samples.clone()
    broken[1] = torch.nan
    got, _ = encoder.step(broken[:, of_samples(rest)], with_row_of_nan(state, 1))
    assert torch.equal(got[0::2], tokens[0::2])
    assert 0 <= int(got.min()) <= int(got.max()) < VOCABULARY  # codes that can be decoded, even of NaN


def with_row_of_nan(state: StreamState, row: int) -> StreamState:
    def poisoned(tensor: Tensor) -> Tensor:
        assert len(tensor) == state.rows
        tensor = tensor.clone()
        tensor[row] = torch.nan if tensor.is_floating_point() else 2**40
        return tensor

    assert state.layers is not None
    return StreamState(state.rows, map_tensors(poisoned, state.layers), state.frames)


def test_a_step_leaves_its_state_as_it_was(codec: Codec, codes: Tensor, samples: Tensor) -> None:
    decoder, encoder = StreamingDecoder(codec), StreamingEncoder(codec)
    _, state = decoder.step(codes[:, :, :8], decoder.start(3))
    made = [decoder.step(codes[:, :, 8:9], state)[0] for _ in range(3)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    _, state = encoder.step(samples[:, : 8 * HOP_SAMPLES], encoder.start(3))
    kept = [tensor.clone() for tensor in state.tensors]
    assert kept
    encoder.step(samples[:, 8 * HOP_SAMPLES :], state)
    for before, after in zip(kept, state.tensors, strict=True):
        assert torch.equal(before, after)


def test_a_prompt_goes_on_in_many_rows(codec: Codec, codes: Tensor) -> None:
    """`repeated`: decode a prompt once, then let each of several rows go on its own way."""
    decoder = StreamingDecoder(codec)
    prompt, going_on = codes[:1, :, :10], codes[:, :, 10:]
    _, state = decoder.step(prompt, decoder.start(1))
    made, _ = decoder.step(going_on, state.repeated(3))
    whole = codec.decode(torch.cat([prompt.expand(3, -1, -1), going_on], -1))
    close(codec, made, whole[:, 10 * HOP_SAMPLES :])


def test_the_state_does_not_grow(codec: Codec, codes: Tensor, samples: Tensor) -> None:
    """Not with the number of steps, and not with the length of the chunk: nothing holds on to a whole prompt."""
    decoder, encoder = StreamingDecoder(codec), StreamingEncoder(codec)
    _, decoding = decoder.step(codes, decoder.start(3))
    _, encoding = encoder.step(samples, encoder.start(3))
    bytes_held = held(decoding), held(encoding)
    for _ in range(3):
        _, decoding = decoder.step(codes.repeat(1, 1, 4), decoding)
        _, encoding = encoder.step(samples.repeat(1, 4), encoding)
    assert (held(decoding), held(encoding)) == bytes_held


def held(state: StreamState) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in state.tensors)


def test_the_weights_are_the_codecs(codec: Codec) -> None:
    assert StreamingDecoder(codec).decoder is codec.decoder
    assert StreamingEncoder(codec).codec is codec


@pytest.mark.parametrize("frames", range(1, PRIMING_FRAMES))
def test_a_first_chunk_that_cannot_be_mirrored(
    make_codec: Callable[..., Codec], codes: Tensor, samples: Tensor, frames: int
) -> None:
    codec = make_codec("seanet", "reflect")
    with pytest.raises(StreamingError, match="7 frames or more"):
        StreamingDecoder(codec).step(codes[:, :, :frames], StreamState(3))
    with pytest.raises(StreamingError, match="7 frames or more"):
        StreamingEncoder(codec).step(samples[:, : frames * HOP_SAMPLES], StreamState(3))


def test_chunks_that_do_not_fit(codec: Codec, codes: Tensor, samples: Tensor) -> None:
    decoder, encoder = StreamingDecoder(codec), StreamingEncoder(codec)
    with pytest.raises(StreamingError, match="3 rows and 24 frames for a state of 2 rows"):
        decoder.step(codes, decoder.start(2))
    with pytest.raises(StreamingError, match="0 frames"):
        decoder.step(codes[:, :, :0], decoder.start(3))
    with pytest.raises(StreamingError, match="for a state of 1 rows"):
        encoder.step(samples, encoder.start(1))
    with pytest.raises(StreamingError, match="319 samples"):
        encoder.step(samples[:, :319], encoder.start(3))
    with pytest.raises(AssertionError, match="3 rows"):
        decoder.start(3).repeated(2)
