"""`model.inference.torch_backend.TorchBackend` for CPUs: the same interface, one compiled call a step, which releases
the GIL."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.decoders.frame import TrunkState
from model.codec.decoders.harmonic import HARMONICS, HarmonicDecoderState
from model.codec.decoders.source_filter import RESPONSE, SOURCES, SourceFilterState
from model.codec.encoders.spectral import NOTES
from model.constants import HOP_SAMPLES, LATENT_DIM, MEL_BANDS, MEL_LEFT_SAMPLES, VOCABULARY
from model.inference.numba_backend.arrays import check, parts_of_row, zeros
from model.inference.numba_backend.attention import Rings
from model.inference.numba_backend.cache import log_compilation
from model.inference.numba_backend.encoder import CompiledEncoder, can_encode
from model.inference.numba_backend.gemm import TILE, WIDENS_HALVES
from model.inference.numba_backend.harmonics import Oscillators
from model.inference.numba_backend.lm_step import Buffers, State, step
from model.inference.numba_backend.sampler import Options
from model.inference.numba_backend.source_filter import Sources
from model.inference.numba_backend.weights import array, packed
from model.inference.rng import Numbers
from model.inference.sampling import SamplingOptions
from model.inference.types import Frames, PromptState, RowSnapshot
from model.lm.kv_cache import KVCache


def can_compile(bundle: Bundle) -> bool:
    """Is there a compiled step for this bundle on its device?"""
    decoder = bundle.lm.config
    widths = [decoder.dim // decoder.heads, decoder.mel_dim // decoder.mel_heads]
    return (
        bundle.device.type == "cpu"
        and bundle.codec.config.decoder in TRUNKS
        and all(width <= TILE for width in widths)  # a head's values fit a tile
    )


def _in_cache_dtype(cached: Tensor, ring: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What a cache of torch's holds, in the form of a ring: exact, since torch has rounded it (`model.lm.kv_cache`)."""
    return array(cached).astype(np.float16).view(np.uint16) if ring.dtype == np.uint16 else array(cached)


def _fill(place: npt.NDArray[Any], values: Tensor) -> None:
    """Copies what fits exactly: an assignment alone would repeat a single value."""
    given = values.detach().cpu().numpy()
    assert given.shape == place.shape and given.dtype == place.dtype, f"{given.dtype} {given.shape} for {place.shape}"
    place[...] = given


def _fill_histories(histories: npt.NDArray[np.float32], row: int, trunk: TrunkState) -> None:
    for history, tensor in zip(histories, trunk.blocks, strict=True):
        _fill(history[row], tensor[0].t())


def _frame_trunk(state: State, row: int, layers: TrunkState) -> TrunkState:
    return layers


def _harmonic_trunk(state: State, row: int, layers: HarmonicDecoderState) -> TrunkState:
    _fill_histories(state.pitch_histories, row, layers.reader)  # whose entry sees the same latents
    state.oscillators.phases[row] = float(layers.harmonics.phase[0])
    state.oscillators.hertz[row] = float(layers.harmonics.hertz[0])
    _fill(state.oscillators.amplitudes[row], layers.harmonics.amplitudes[0])
    return layers.frame


def _source_filter_trunk(state: State, row: int, layers: SourceFilterState) -> TrunkState:
    places: Sequence[npt.NDArray[Any]] = list(state.sources)
    for place, tensor in zip(places, layers.sources, strict=True):
        _fill(place[row : row + 1], tensor)
    return layers.trunk


# The kinds of `model.codec.config.DECODERS` with a compiled form. From the state that torch's decoder has after a
# prompt, each fills what a row has beside a trunk, and returns the trunk's own.
TRUNKS: dict[str, Callable[[State, int, Any], TrunkState]] = {
    "frame": _frame_trunk,
    "harmonic": _harmonic_trunk,
    "source_filter": _source_filter_trunk,
}


class NumbaBackend:
    """A fixed number of rows of one bundle; the weights are shared by all of its slots."""

    def __init__(self, bundle: Bundle, rows: int, codebooks: int | None = None) -> None:
        """Raises ValueError for a bundle that `can_compile` refuses."""
        if not can_compile(bundle):
            raise ValueError("this bundle has no compiled step")
        self.rows = rows
        self.codebooks = codebooks or bundle.codec.config.codebooks
        self._weights = packed(bundle)
        decoder, codec = bundle.lm.config, bundle.codec.config
        self.mel = decoder.mel
        self._trunk = TRUNKS[codec.decoder]
        self._window = window = decoder.window
        past = codec.frame_kernel - 1

        tiles = -(-window // TILE)

        def rings(layers: int, heads: int, width: int) -> Rings:
            dtype: Any = np.uint16 if WIDENS_HALVES else np.float32
            return Rings(
                np.zeros((layers, rows, heads, tiles, width, TILE), dtype),
                np.zeros((layers, rows, heads, 1, window, TILE), dtype),
            )

        self._state = State(
            codes=np.zeros((rows, self.codebooks), np.int64),
            mel=np.zeros((rows, MEL_BANDS), np.float32),
            positions=np.zeros(rows, np.int64),
            mel_rings=rings(decoder.mel_layers, decoder.mel_heads, decoder.mel_dim // decoder.mel_heads)
            if decoder.mel
            else rings(0, 1, 4),
            rings=rings(decoder.layers, decoder.heads, decoder.dim // decoder.heads),
            entries=np.zeros((rows, past, LATENT_DIM), np.float32),
            histories=np.zeros((codec.frame_blocks, rows, past, codec.frame_dim), np.float32),
            pitch_histories=np.zeros((codec.pitch_blocks, rows, past, codec.pitch_dim), np.float32),
            oscillators=Oscillators(np.zeros(rows), np.zeros(rows), np.zeros((rows, HARMONICS), np.float32)),
            sources=Sources(
                np.zeros(rows, np.int64),
                np.zeros(rows),
                np.zeros(rows),
                np.zeros((rows, SOURCES), np.float32),
                np.zeros((rows, NOTES), np.float32),
                np.zeros((rows, RESPONSE), np.float32),
            ),
            tails=np.zeros((rows, MEL_LEFT_SAMPLES), np.float32),
        )
        self._options = zeros(Options, rows=rows)  # a row's are filled when it joins

        def buffer(width: int) -> npt.NDArray[np.float32]:
            return np.zeros((rows, -(-width // TILE) * TILE), np.float32)

        widest = self._weights.widest
        narrow = max(decoder.dim, decoder.mel_dim, decoder.fine_dim, codec.frame_dim, codec.pitch_dim, MEL_BANDS)
        self._buffers = Buffers(
            x=buffer(narrow), normed=buffer(narrow), wide=buffer(widest), mixed=buffer(narrow),
            logits=buffer(VOCABULARY), small=buffer(decoder.mel_dim), scores=np.zeros((1, tiles * TILE), np.float32),
            probabilities=np.zeros(VOCABULARY, np.float32), within=np.zeros(VOCABULARY, np.float32),
            work=np.zeros(VOCABULARY, np.float32),
            windows=buffer(codec.frame_kernel * LATENT_DIM), samples=buffer(HOP_SAMPLES),
        )  # fmt: skip
        check(self._state, rows=rows)
        check(self._options, rows=rows)
        check(self._buffers, rows=rows)
        self._numbers: list[Numbers | None] = [None] * rows
        # compile, or load what was compiled before: not when somebody waits for audio
        with log_compilation(step, "step"):
            self.step([])
        if can_encode(bundle.codec):
            CompiledEncoder(bundle.codec)

    def join(self, row: int, prompt: PromptState | RowSnapshot, options: SamplingOptions, choice: int = 0) -> None:
        """The row goes on from a prompt, or from where a row stood, which stays as it is.

        Raises ValueError when it was read in another way.
        """
        if prompt.codebooks != self.codebooks or (isinstance(prompt, PromptState) and prompt.masked):
            raise ValueError("the prompt was read for another mel source or number of codebooks")
        assert 0 <= row < self.rows  # where compiled code begins to count: no bound is looked at after this
        if isinstance(prompt, RowSnapshot):
            for place, part in zip(parts_of_row(self._state, row), prompt.held, strict=True):
                assert part.shape == place.shape and part.dtype == place.dtype, "a row of another backend"
                place[...] = part
        else:
            self._fill_from(row, prompt)
        for name in Options._fields:
            getattr(self._options, name)[row] = getattr(options, name)
        made = prompt.frames if isinstance(prompt, RowSnapshot) else 0
        self._numbers[row] = Numbers(options.seed, choice, self.codebooks, made)

    def snapshot(self, row: int) -> RowSnapshot:
        """A copy of a taken row as it stands: 2.5 MB (hybrid-4m)."""
        numbers = self._numbers[row]
        assert numbers is not None, f"row {row} is free"
        held = [part.copy() for part in parts_of_row(self._state, row)]
        tail = self._state.tails[row].copy()
        return RowSnapshot(held, tail, numbers.frame, self.codebooks, sum(part.nbytes for part in held))

    def _fill_from(self, row: int, prompt: PromptState) -> None:
        state = self._state
        codes = prompt.codes[0].cpu().numpy()
        assert prompt.cache.length >= 0
        assert codes.shape == (self.codebooks,) and codes.min() >= 0 and codes.max() < VOCABULARY
        state.codes[row] = codes
        _fill(state.mel[row], prompt.mel[0, -1])
        state.positions[row] = prompt.cache.length
        self._fill_rings(state.rings, row, prompt.cache.stack)
        if self.mel:
            assert prompt.cache.mel is not None, "a cache with mel belongs to a model with mel"
            self._fill_rings(state.mel_rings, row, prompt.cache.mel)
        trunk = self._trunk(state, row, prompt.codec.layers)
        _fill(state.entries[row], trunk.entry[0].t())
        _fill_histories(state.histories, row, trunk)
        _fill(state.tails[row], prompt.tail[0])

    def _fill_rings(self, rings: Rings, row: int, cache: KVCache) -> None:
        valid = min(cache.length, self._window)
        assert cache.window == self._window, f"a cache of {cache.window} positions for rings of {self._window}"
        for ring in rings:
            ring[:, row] = 0  # slots that hold nothing are computed with, and must not be NaN
        layers, heads, tiles, width, _ = rings.keys[:, row].shape
        keys = np.zeros((layers, heads, tiles * TILE, width), rings.keys.dtype)
        keys[:, :, :valid] = _in_cache_dtype(cache.keys[:, 0, :, :valid], rings.keys)
        rings.keys[:, row] = keys.reshape(layers, heads, tiles, TILE, width).swapaxes(-1, -2)
        rings.values[:, row, :, 0, :valid, :width] = _in_cache_dtype(cache.values[:, 0, :, :valid], rings.values)

    def leave(self, row: int) -> None:
        """The row is free. What it held stays in place until another joins, and changes nothing."""
        self._numbers[row] = None

    def step(self, active: Sequence[int]) -> Frames:
        """Make one frame of each active row; the others' states stay as they are."""
        count = len(active)
        uniforms = np.empty((count, self.codebooks))
        for at, row in enumerate(active):
            numbers = self._numbers[row]
            assert numbers is not None, f"row {row} is free"
            uniforms[at] = numbers.next()
        codes = np.empty((count, self.codebooks), np.int64)
        logprobs = np.empty((count, self.codebooks), np.float32)
        mel = np.empty((count, MEL_BANDS), np.float32)
        weights: Any = self._weights
        step(
            weights.model, weights.fine, weights.decoder, weights.tables, self._state, self._options,
            np.array(active, np.int64).reshape(count), uniforms, self._buffers, codes, logprobs, mel,
        )  # fmt: skip
        samples = self._buffers.samples[:count, :HOP_SAMPLES].copy()
        return Frames(codes, logprobs[:, 0].copy(), logprobs[:, 1:], samples, mel)
