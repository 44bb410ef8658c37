"""Slots: what a row makes does not depend on the others, on its place, or on when it came.

Every law is asked of torch's slots and of the compiled ones, with a `frame` decoder and with a `harmonic` one.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import Bundle, random_bundle
from model.constants import HOP_SAMPLES
from model.inference import cuda
from model.inference.backend import Backend, backend_for
from model.inference.generate import generate
from model.inference.numba_backend.backend import NumbaBackend, can_compile
from model.inference.prefill import prefill
from model.inference.rng import BLOCK
from model.inference.sampling import SamplingOptions
from model.inference.torch_backend import TorchBackend
from model.inference.types import Frames, PromptState
from model.lm.config import PRESETS
from model.lm.hybrid_lm import HybridLM
from tests.support.signals import enliven

OPTIONS = [
    SamplingOptions(seed=1),
    SamplingOptions(temperature=0.0, seed=2),
    SamplingOptions(temperature=0.8, top_k=20, seed=3),
    SamplingOptions(temperature=1.2, top_p=0.9, seed=9),  # (a seed with no draw on the very edge of the nucleus)
    SamplingOptions(temperature=0.9, top_k=200, top_p=0.95, seed=5),
]
LENGTHS = [7, 30, 47, 48, 100]  # frames; the window of the tiny preset is 48
KINDS = [TorchBackend, NumbaBackend]
Kind = type[TorchBackend] | type[NumbaBackend]


@pytest.fixture(scope="module", params=["frame", "harmonic", "source_filter"])
def bundle(request: pytest.FixtureRequest, speech_like: Tensor) -> Bundle:
    """Random weights; nobody may change them."""
    made = random_bundle(
        "tiny", decoder=request.param, encoder="spectral" if request.param == "source_filter" else "seanet"
    )
    enliven(made.codec, speech_like)
    return made


@pytest.fixture(scope="module")
def prompts(bundle: Bundle, speech_like: Tensor) -> list[PromptState]:
    return [
        prefill(bundle, speech_like[index * 4800 : index * 4800 + length * HOP_SAMPLES])
        for index, length in enumerate(LENGTHS)
    ]


@pytest.fixture(params=KINDS, ids=["torch", "compiled"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def run_alone(
    kind: Kind, bundle: Bundle, prompt: PromptState, options: SamplingOptions, frames: int, rows: int
) -> list[Frames]:
    slots: Backend = kind(bundle, rows)
    slots.join(0, prompt, options)
    return [slots.step([0]) for _ in range(frames)]


def assert_same(one: Frames, index: int, other: Frames, at: int = 0) -> None:
    for name in ("codes", "logprobs", "fine_logprobs", "samples", "mel"):
        np.testing.assert_array_equal(getattr(one, name)[index], getattr(other, name)[at], err_msg=name)


@pytest.mark.parametrize("which", range(len(OPTIONS)))
def test_a_row_makes_what_generate_makes(kind: Kind, bundle: Bundle, prompts: list[PromptState], which: int) -> None:
    """The static shapes are another arithmetic of the same sums: equal tokens, and values within rounding."""
    alone = run_alone(kind, bundle, prompts[which], OPTIONS[which], 60, 4)
    plain = list(generate(bundle, prompts[which], frames=60, options=OPTIONS[which]))
    for frame, expected in zip(alone, plain, strict=True):
        np.testing.assert_array_equal(frame.codes[0], expected.codes[0].numpy())
        np.testing.assert_allclose(frame.logprobs[0], expected.logprobs[0].numpy(), atol=1e-4)
        np.testing.assert_allclose(frame.fine_logprobs[0], expected.fine_logprobs[0].numpy(), atol=1e-4)
        # oscillators: a pitch that rounds otherwise turns the phase from then on
        atol = {"frame": 1e-5, "harmonic": 1e-4, "source_filter": 5e-4}[bundle.codec.config.decoder]
        np.testing.assert_allclose(frame.samples[0], expected.samples[0].numpy(), atol=atol)
        np.testing.assert_allclose(frame.mel[0], expected.mel[0].numpy(), atol=1e-3)


def test_a_thousand_random_mixes_change_no_bit(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    """Rows join, pause and leave at random, in random places, for 1,000 steps of a batch."""
    expected = [
        run_alone(kind, bundle, prompt, options, 40, 8) for prompt, options in zip(prompts, OPTIONS, strict=True)
    ]
    rng = np.random.default_rng(0)
    slots = kind(bundle, 8)
    inside: dict[int, tuple[int, int]] = {}  # row: which prompt, frames made
    compared = 0
    for _ in range(1000):
        for row in range(slots.rows):
            if row not in inside and rng.random() < 0.3:
                which = int(rng.integers(len(prompts)))
                slots.join(row, prompts[which], OPTIONS[which])
                inside[row] = (which, 0)
            elif row in inside and (rng.random() < 0.02 or inside[row][1] == 40):
                slots.leave(row)
                del inside[row]
        active = [row for row in inside if rng.random() < 0.9]
        rng.shuffle(active)
        if not active:
            continue
        made = slots.step(active)
        for index, row in enumerate(active):
            which, frame = inside[row]
            assert_same(made, index, expected[which][frame])
            inside[row] = (which, frame + 1)
            compared += 1
    assert compared > 4000


def poison(slots: Any, rows: list[int]) -> None:
    """NaN in all that these rows hold."""
    if isinstance(slots, NumbaBackend):
        state = slots._state
        for ring in (*state.rings, *state.mel_rings):
            (ring.view(np.float16) if ring.dtype == np.uint16 else ring)[:, rows] = np.nan
        for array in (state.histories, state.pitch_histories):
            array[:, rows] = np.nan
        for part in (state.mel, state.entries, *state.oscillators, *state.sources, state.tails):
            part[rows] = np.nan if part.dtype.kind == "f" else 2**40
        return
    with torch.inference_mode():
        for ring in (slots._lm.stack, slots._lm.mel):
            ring.keys[:, rows] = torch.nan
            ring.values[:, rows] = torch.nan
        for tensor in (*slots._state.codec.tensors, slots._state.mel, slots._state.tail):
            tensor[rows] = torch.nan if tensor.is_floating_point() else 2**40


def test_what_free_rows_hold_changes_nothing(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    expected = run_alone(kind, bundle, prompts[1], OPTIONS[4], 10, 4)
    slots = kind(bundle, 4)
    slots.join(2, prompts[1], OPTIONS[4])
    poison(slots, [0, 1, 3])
    for frame in expected:
        assert_same(slots.step([2]), 0, frame)


def test_the_place_of_one_that_left_is_as_new(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    expected = run_alone(kind, bundle, prompts[0], OPTIONS[0], 10, 4)
    slots = kind(bundle, 4)
    slots.join(1, prompts[4], OPTIONS[2])
    for _ in range(5):
        slots.step([1])
    slots.leave(1)
    poison(slots, [1])  # as if it had gone wrong before it left
    slots.join(1, prompts[0], OPTIONS[0])
    for frame in expected:
        assert_same(slots.step([1]), 0, frame)


def test_choices_of_one_prompt(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    slots = kind(bundle, 4)
    for choice in range(3):
        slots.join(choice, prompts[1], OPTIONS[0], choice)
    codes = np.stack([slots.step([0, 1, 2]).codes for _ in range(20)])
    plain = np.stack([f.codes.numpy() for f in generate(bundle, prompts[1], frames=20, options=OPTIONS[0], n=3)])
    np.testing.assert_array_equal(codes, plain)


def test_random_numbers_go_on_from_block_to_block(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    frames = BLOCK + 5
    alone = run_alone(kind, bundle, prompts[0], OPTIONS[0], frames, 4)
    plain = list(generate(bundle, prompts[0], frames=frames, options=OPTIONS[0]))
    assert [f.codes[0].tolist() for f in alone] == [f.codes[0].tolist() for f in plain]


@pytest.mark.parametrize("settings", [{"decoder": "seanet"}, {"decoder": "seanet", "pad_mode": "reflect"}])
def test_seanet_decoders(make_codec: Any, speech_like: Tensor, settings: dict[str, str]) -> None:
    """These step with torch."""
    bundle = random_bundle("tiny")
    bundle.codec = make_codec(**settings)
    enliven(bundle.codec, speech_like)
    assert not can_compile(bundle)
    with pytest.raises(ValueError, match="compiled"):
        NumbaBackend(bundle, 1)
    prompt = prefill(bundle, speech_like[: 20 * HOP_SAMPLES])
    alone = run_alone(TorchBackend, bundle, prompt, OPTIONS[0], 12, 4)
    slots = backend_for(bundle, 4)
    slots.join(3, prefill(bundle, speech_like[: 40 * HOP_SAMPLES]), OPTIONS[1])
    slots.step([3])
    slots.join(1, prompt, OPTIONS[0])
    for frame in alone:
        assert_same(slots.step([3, 1]), 1, frame)


def test_token_only_models(kind: Kind, bundle: Bundle, speech_like: Tensor) -> None:
    torch.manual_seed(3)
    model = HybridLM(replace(PRESETS["tiny"], mel=False)).eval().requires_grad_(False)
    token_only = replace(bundle, lm=model)
    prompt = prefill(token_only, speech_like[: 30 * HOP_SAMPLES])
    alone = run_alone(kind, token_only, prompt, OPTIONS[0], 20, 4)
    for frame, expected in zip(alone, generate(token_only, prompt, frames=20, options=OPTIONS[0]), strict=True):
        np.testing.assert_array_equal(frame.codes[0], expected.codes[0].numpy())
        np.testing.assert_allclose(frame.logprobs[0], expected.logprobs[0].numpy(), atol=1e-4)


def test_a_compiled_step_needs_a_frame_decoder_on_a_cpu(bundle: Bundle) -> None:
    assert can_compile(bundle)
    assert isinstance(backend_for(bundle, 1), NumbaBackend)


def test_what_a_graph_computes_is_the_same(bundle: Bundle, prompts: list[PromptState]) -> None:
    """On a GPU every step does all that rows may ask for; here the same operations, one by one."""
    plain, fixed = TorchBackend(bundle, 8), TorchBackend(bundle, 8, fixed=True)
    for slots in (plain, fixed):
        for row, (prompt, options) in enumerate(zip(prompts, OPTIONS, strict=True)):
            slots.join(row, prompt, options)
    for step in range(30):
        active = [row for row in range(5) if (row + step) % 4]
        one, other = plain.step(active), fixed.step(active)
        for at in range(len(active)):
            assert_same(one, at, other, at)


@pytest.mark.cuda
def test_a_graph_and_its_operations_one_by_one(speech_like: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch turns graphs off; a thread that has set no device hands its prompt over by an event."""
    bundle = random_bundle("tiny")
    enliven(bundle.codec, speech_like)
    bundle.to("cuda")
    with ThreadPoolExecutor(1) as pool:
        prompt = pool.submit(prefill, bundle, speech_like[: 30 * HOP_SAMPLES]).result()
    assert prompt.ready is not None
    recorded = run_alone(TorchBackend, bundle, prompt, OPTIONS[4], 20, 8)
    monkeypatch.setenv(cuda.SWITCH, "0")
    plain = run_alone(TorchBackend, bundle, prompt, OPTIONS[4], 20, 8)
    for frame, expected in zip(recorded, plain, strict=True):
        assert_same(frame, 0, expected)


@pytest.mark.cuda
def test_a_graph_on_a_gpu_makes_what_generate_makes(speech_like: Tensor) -> None:
    bundle = random_bundle("tiny")
    enliven(bundle.codec, speech_like)
    bundle.to("cuda")
    prompt = prefill(bundle, speech_like[: 30 * HOP_SAMPLES])
    alone = run_alone(TorchBackend, bundle, prompt, OPTIONS[4], 60, 8)
    mixed = TorchBackend(bundle, 8)
    for row in range(8):
        mixed.join(row, prompt, OPTIONS[4 if row == 3 else row % 4])
    plain = generate(bundle, prompt, frames=60, options=OPTIONS[4])
    for frame, expected in zip(alone, plain, strict=True):
        assert_same(mixed.step(range(8)), 3, frame)
        np.testing.assert_array_equal(frame.codes[0], expected.codes[0].cpu().numpy())
        np.testing.assert_allclose(frame.samples[0], expected.samples[0].cpu().numpy(), atol=1e-4)


def test_a_prompt_read_otherwise_is_refused(kind: Kind, bundle: Bundle, speech_like: Tensor) -> None:
    slots = kind(bundle, 1, codebooks=4)
    with pytest.raises(ValueError, match="codebooks"):
        slots.join(0, prefill(bundle, speech_like[:9600]), OPTIONS[0])
    with pytest.raises(ValueError, match="mel"):
        slots.join(0, prefill(bundle, speech_like[:9600], codebooks=4, masked=True), OPTIONS[0])
    slots.join(0, prefill(bundle, speech_like[:9600], codebooks=4), OPTIONS[0])
    assert slots.step([0]).codes.shape == (1, 4)


@pytest.mark.parametrize("which", range(len(OPTIONS)))
def test_a_row_resumed_elsewhere_is_the_row_uninterrupted(
    kind: Kind, bundle: Bundle, prompts: list[PromptState], which: int
) -> None:
    """To the bit: in another backend, at another place, any number of times, whatever the row has done meanwhile."""
    whole = run_alone(kind, bundle, prompts[which], OPTIONS[which], 60, 4)
    first = kind(bundle, 4)
    first.join(0, prompts[which], OPTIONS[which])
    first.join(1, prompts[0], OPTIONS[1])
    for _ in range(25):
        first.step([0, 1])
    left = first.snapshot(0)
    for _ in range(5):
        first.step([0])
    assert left.frames == 25
    np.testing.assert_array_equal(left.tail[-HOP_SAMPLES:], whole[24].samples[0])
    for at in (2, 3):
        other: Backend = kind(bundle, 4)
        other.join(at, left, OPTIONS[which])
        other.join(0, prompts[2], OPTIONS[0])
        for expected in whole[25:]:
            assert_same(other.step([0, at]), 1, expected)


def test_a_snapshot_holds_what_it_says(kind: Kind, bundle: Bundle, prompts: list[PromptState]) -> None:
    slots = kind(bundle, 4)
    slots.join(2, prompts[0], OPTIONS[0])
    left = slots.snapshot(2)
    assert left.frames == 0 and left.codebooks == slots.codebooks
    rings = bundle.lm.config.layers * bundle.lm.config.window * bundle.lm.config.dim * 2
    assert 2 * rings <= left.nbytes <= 16 * rings  # float16 or float32, and the rest
    assert prompts[0].nbytes >= 4 * rings
    with pytest.raises(ValueError, match="number of codebooks"):
        slots.join(0, replace(left, codebooks=left.codebooks // 2), OPTIONS[0])
