"""A bundle's weights as arrays that the compiled step reads; made once a bundle and shared by all slots."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from model.checkpoint import Bundle
from model.codec.codec import Codec
from model.codec.config import DECODERS, CodecConfig
from model.codec.decoders.frame import ConvNeXtBlock, FrameTrunk
from model.codec.decoders.harmonic import LINES, HarmonicDecoder
from model.codec.decoders.source_filter import BANDS, BINS, FFT, SUBFRAME, SourceFilterDecoder
from model.codec.encoders.spectral import NOTES
from model.constants import MEL_BANDS, MEL_WINDOW_SAMPLES, SAMPLE_RATE_HZ, VOCABULARY
from model.inference.numba_backend.arrays import check
from model.inference.numba_backend.attention import StackWeights
from model.inference.numba_backend.codec_decoder import DecoderWeights, TrunkWeights
from model.inference.numba_backend.gemm import TILE, WIDENS_HALVES, is_half, pack
from model.inference.numba_backend.harmonics import HarmonicWeights
from model.inference.numba_backend.lm_step import FineWeights, MelWeights, ModelWeights
from model.inference.numba_backend.log_mel import MelTables
from model.inference.numba_backend.sampler import LevelTables
from model.inference.numba_backend.source_filter import SourceWeights
from model.lm.hybrid_lm import HybridLM
from model.lm.mel import LogMel
from model.lm.transformer import Stack

Array = npt.NDArray[np.float32]
Packer = Callable[[Array], npt.NDArray[Any]]


@dataclass(frozen=True)
class Packed:
    """All that does not change from step to step."""

    model: ModelWeights
    fine: FineWeights
    decoder: DecoderWeights
    tables: MelTables
    widest: int  # outputs of the widest product of the stack, the depth decoder or the codec, or inputs


def array(tensor: Tensor) -> Array:
    """A tensor as a float32 array of its own, contiguous."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy()).copy()


def _all(arrays: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.stack(list(arrays)))


def _stack(stack: Stack, packed: Packer) -> StackWeights:
    blocks: list[Any] = list(stack.blocks)
    return StackWeights(
        attention_norm=_all(array(block.attention_norm.weight) for block in blocks),
        qkv=_all(packed(array(block.attention.qkv.weight)) for block in blocks),
        out=_all(packed(array(block.attention.out.weight)) for block in blocks),
        feed_norm=_all(array(block.feed_norm.weight) for block in blocks),
        expand=_all(packed(array(block.expand.weight)) for block in blocks),
        contract=_all(packed(array(block.contract.weight)) for block in blocks),
    )


def level_tables(levels: Sequence[int]) -> LevelTables:
    """From the level of each token (V,), or from () where nothing is known of them."""
    known = np.array(levels or [0] * VOCABULARY)
    return LevelTables(np.argsort(known, kind="stable"), np.concatenate([[0], np.bincount(known).cumsum()]))


def _model(model: HybridLM, levels: Sequence[int], packed: Packer) -> ModelWeights:
    stack = _stack(model.stack, packed)
    if model.mel is None:  # the same types, never read
        nothing = np.ones(1, np.float32)
        matrix = packed(np.zeros((1, 1), np.float32))
        mel = MelWeights(nothing, nothing, matrix, nothing, stack, nothing, matrix)
    else:
        mel = MelWeights(
            mean=array(model.mel_mean),
            deviation=array(model.mel_std),
            entry=packed(array(model.mel.entry.weight)),
            entry_bias=array(model.mel.entry.bias),
            stack=_stack(model.mel.stack, packed),
            norm=array(model.mel.norm.weight),
            out=packed(array(model.mel.out.weight)),
        )
    return ModelWeights(
        uses_mel=model.mel is not None,
        window=model.config.window,
        mel=mel,
        embedding=array(model.embedding.weight),
        stack=stack,
        norm=array(model.norm.weight),
        head=packed(array(model.head.weight)),
        levels=level_tables(levels),
    )


def _fine(model: HybridLM, packed: Packer) -> FineWeights:
    fine = model.fine

    def each(modules: nn.ModuleList, how: Packer) -> npt.NDArray[Any]:
        return _all(how(array(module.weight)) for module in modules)  # type: ignore[arg-type]

    return FineWeights(
        entry=packed(array(fine.entry.weight)),
        previous_frame=np.zeros((0, 1, 1), np.float32) if fine.previous_frame is None else array(fine.previous_frame),
        embeddings=each(fine.embeddings, np.asarray),
        norms=each(fine.norms, np.asarray),
        expands=each(fine.expands, packed),
        contracts=each(fine.contracts, packed),
        head_norms=each(fine.head_norms, np.asarray),
        heads=each(fine.heads, packed),
    )


def _bias(module: nn.Module) -> Array:
    assert isinstance(module.bias, Tensor)
    return array(module.bias)


def _trunk(trunk: FrameTrunk, packed: Packer) -> TrunkWeights:
    blocks = [block for block in trunk.blocks if isinstance(block, ConvNeXtBlock)]

    def each(read: Callable[[ConvNeXtBlock], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        return _all(read(block) for block in blocks)

    return TrunkWeights(
        entry=packed(array(trunk.entry.weight.permute(0, 2, 1).flatten(1))),  # frames, then channels
        entry_bias=_bias(trunk.entry),
        depthwise=each(lambda block: array(block.depthwise.weight[:, 0].t())),
        depthwise_bias=each(lambda block: _bias(block.depthwise)),
        norm=each(lambda block: array(block.norm.weight)),
        norm_bias=each(lambda block: _bias(block.norm)),
        expand=each(lambda block: packed(array(block.expand.weight))),
        expand_bias=each(lambda block: _bias(block.expand)),
        contract=each(lambda block: packed(array(block.contract.weight))),
        contract_bias=each(lambda block: _bias(block.contract)),
        scale=each(lambda block: array(block.scale)),
        last_norm=array(trunk.norm.weight),
        last_norm_bias=_bias(trunk.norm),
    )


def _harmonics(decoder: HarmonicDecoder, packed: Packer) -> HarmonicWeights:
    estimator, waves = decoder.reader, array(decoder.waves.flatten(0, 1))  # (2 LINES, 320)
    return HarmonicWeights(
        heads=packed(np.concatenate([array(estimator.bins.weight), array(estimator.share.weight)])),
        heads_bias=np.concatenate([_bias(estimator.bins), _bias(estimator.share)]),
        log_hertz=estimator.log_hertz.cpu().numpy().astype(np.float64),
        shapes=array(decoder.shapes),
        waves=pack(waves, half=False),
        back=pack(np.ascontiguousarray(waves.T), half=False),
    )


def bit_reversed(size: int) -> npt.NDArray[np.int64]:
    """Each index below ``size``, a power of 2, with its bits in reverse order: (size,)"""
    bits = size.bit_length() - 1
    return np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(size)])


def source_weights(decoder: SourceFilterDecoder, packed: Packer) -> SourceWeights:
    """What `source_filter.render_sources` needs."""
    tiles = -(-(decoder.bins.out_features + decoder.head.out_features) // TILE) * TILE
    bias = np.zeros(tiles, np.float32)
    own = np.concatenate([_bias(decoder.bins), _bias(decoder.head)])
    bias[: len(own)] = own
    turns = decoder.band_phases.double().cpu().numpy() / (2 * math.pi)
    responses = np.concatenate([array(decoder.band_gains), turns.astype(np.float32)], 1)  # (BANDS, 2 BINS)
    assert responses.shape == (BANDS, 2 * BINS)
    note_turns = decoder.note_hertz.cpu().numpy() / SAMPLE_RATE_HZ
    angle = 2 * math.pi * ((note_turns[:, None] * np.arange(1, SUBFRAME + 1)) % 1.0)  # (NOTES, SUBFRAME)
    waves = np.concatenate([np.cos(angle), np.sin(angle)]).astype(np.float32)
    assert waves.shape == (2 * NOTES, SUBFRAME)
    table = 2 * math.pi * np.arange(FFT // 2) / FFT
    return SourceWeights(
        heads=packed(np.concatenate([array(decoder.bins.weight), array(decoder.head.weight)])),
        heads_bias=bias,
        log_hertz=decoder.log_hertz.cpu().numpy().astype(np.float64),
        responses=pack(np.ascontiguousarray(responses.T), half=False),
        waves=pack(np.ascontiguousarray(waves.T), half=False),
        note_turns=note_turns.astype(np.float64),
        reversed=bit_reversed(FFT),
        cos=np.cos(table).astype(np.float32),
        sin=(-np.sin(table)).astype(np.float32),
    )


# of the decoders that stand in for the kinds that a codec's is not
STAND_IN = CodecConfig(frame_dim=16, frame_blocks=1, frame_expansion=1, frame_kernel=1, pitch_dim=16, pitch_blocks=1)


def _decoder(codec: Codec, packed: Packer) -> DecoderWeights:
    """All kinds have the same types; what a kind does not have is a small stand-in that is never read."""
    kind = codec.config.decoder

    def of(name: str) -> Any:
        return codec.decoder if name == kind else resolve_name(DECODERS[name]).from_config(STAND_IN)

    with torch.random.fork_rng(devices=[]):
        source_filter, harmonic = of("source_filter"), of("harmonic")
        frame = harmonic.frame if kind == "harmonic" else of("frame")
    return DecoderWeights(
        books=array(codec.codebooks()),
        trunk=_trunk(source_filter.trunk if kind == "source_filter" else frame, packed),
        head=packed(array(frame.head.weight)),
        head_bias=_bias(frame.head),
        gain=array(frame.gain.weight[0]),
        gain_bias=np.float32(_bias(frame.gain)[0]),
        is_harmonic=kind == "harmonic",
        pitch_estimator=_trunk(harmonic.reader, packed),
        harmonics=_harmonics(harmonic, packed),
        is_source_filter=kind == "source_filter",
        sources=source_weights(source_filter, packed),
    )


def mel_tables(mel: LogMel) -> MelTables:
    """What `log_mel.log_mel_frame` needs: twiddles are computed in float64."""
    half = MEL_WINDOW_SAMPLES // 2
    bank = array(mel.bank.t())
    used = bank > 0
    filled = used.any(1)
    angle = -2 * math.pi * np.arange(half) / half
    real_angle = -2 * math.pi * np.arange(half + 1) / MEL_WINDOW_SAMPLES
    assert bank.shape == (MEL_BANDS, half + 1)
    return MelTables(
        window=array(mel.window),
        bank=bank,
        first=np.where(filled, used.argmax(1), 0),
        last=np.where(filled, half + 1 - used[:, ::-1].argmax(1), 0),
        reversed=bit_reversed(half),
        cos=np.cos(angle).astype(np.float32),
        sin=np.sin(angle).astype(np.float32),
        real_cos=np.cos(real_angle).astype(np.float32),
        real_sin=np.sin(real_angle).astype(np.float32),
    )


_packed: "WeakKeyDictionary[HybridLM, tuple[Codec, tuple[int, ...], Packed]]" = WeakKeyDictionary()


def packed(bundle: Bundle) -> Packed:
    """A bundle's weights, packed; the same object for the same modules (their weights are not expected to change)."""
    known = _packed.get(bundle.lm)
    if known is not None and known[0] is bundle.codec and known[1] == bundle.levels:
        return known[2]
    matrices = [p for module in (bundle.lm, bundle.codec.decoder) for p in module.parameters() if p.dim() > 1]
    half = WIDENS_HALVES and all(is_half(array(matrix)) for matrix in matrices)

    def packer(weight: Array) -> npt.NDArray[Any]:
        return pack(weight, half)

    decoder, codec = bundle.lm.config, bundle.codec.config
    made = Packed(
        _model(bundle.lm, bundle.levels, packer), _fine(bundle.lm, packer), _decoder(bundle.codec, packer),
        mel_tables(bundle.mel),
        max(4 * decoder.dim, 4 * decoder.mel_dim, 2 * decoder.fine_dim, codec.frame_expansion * codec.frame_dim,
            codec.frame_expansion * codec.pitch_dim, 2 * LINES, MEL_BANDS),
    )  # fmt: skip
    for record in (made.model, made.fine, made.decoder, made.tables):
        check(record)
    _packed[bundle.lm] = (bundle.codec, bundle.levels, made)
    return made
