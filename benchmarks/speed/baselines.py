"""What takes part in `benchmarks/speed/step.py`: our step, and what a user would pick instead.

All hold the same shape of model (4 layers of 256, 4 heads, 1,024 tokens), the same number of rows and a prompt of 225
positions (3 s), and draw each token from the whole distribution at temperature 1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.timing import Clocks, clocks, since
from model.checkpoint import Bundle
from model.codec.encodec_import import ensure_importable
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ, VOCABULARY
from model.inference.backend import Backend
from model.inference.numba_backend.backend import NumbaBackend
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.lm_step import lm_logits, sample_codes
from model.inference.prefill import prefill
from model.inference.sampling import RowOptions, SamplingOptions, draw
from model.inference.torch_backend import TorchBackend
from model.lm.config import PRESETS, DecoderConfig
from model.lm.hybrid_lm import HybridLM, LMSlots

PROMPT_SECONDS = 3
PROMPT_POSITIONS = FRAME_RATE_HZ * PROMPT_SECONDS
Run = Callable[[], Clocks]  # the clocks of one step, the mean over some


def random_model(config: DecoderConfig, seed: int = 0) -> HybridLM:
    """Random weights that are float16 on disk, as trained ones are: as good as any for time, and only for that."""
    before = torch.get_rng_state()
    torch.manual_seed(seed)
    model = HybridLM(config).eval().requires_grad_(False)
    torch.set_rng_state(before)
    for parameter in model.parameters():
        parameter.copy_(parameter.half().float())
    return model


def bundle_of(preset: str, base: Bundle) -> Bundle:
    """The base itself when it has this preset; else its codec with random weights of the preset."""
    if base.preset == preset:
        return base
    return replace(base, lm=random_model(PRESETS[preset]), name=f"random {preset}", preset=preset)


def a_prompt() -> Tensor:
    """(N,) samples: noise, of which a codec makes as many tokens as of anything."""
    return torch.randn(PROMPT_SECONDS * SAMPLE_RATE_HZ, generator=torch.Generator().manual_seed(0)) * 0.05


def filled(slots: Backend, bundle: Bundle) -> Backend:
    """All rows go on from the same prompt, each with a seed of its own."""
    prompt = prefill(bundle, a_prompt(), codebooks=slots.codebooks)
    for row in range(slots.rows):
        slots.join(row, prompt, SamplingOptions(seed=row))
    return slots


def closed_loop(bundle: Bundle, rows: int, steps: int, kind: Literal["compiled", "torch"], codebooks: int = 8) -> Run:
    """The whole frame of each row: all codes, samples, mel frame."""
    make = NumbaBackend if kind == "compiled" else TorchBackend
    every = list(range(rows))

    def run() -> Clocks:
        slots = filled(make(bundle, rows, codebooks), bundle)
        slots.step(every)
        begin = clocks()
        for _ in range(steps):
            slots.step(every)
        return each(since(begin), steps)

    return run


@compiled
def _token_step(
    model: Any, fine: Any, state: Any, options: Any, rows: Any, uniforms: Any, buffers: Any, codes: Any, logprobs: Any
) -> None:
    lm_logits(model, state, rows, buffers)
    sample_codes(fine, model.levels, options, state.codes, rows, uniforms, buffers, codes, logprobs)
    for a in range(rows.shape[0]):
        state.codes[rows[a], 0] = codes[a, 0]
        state.positions[rows[a]] += 1


def token_step(bundle: Bundle, rows: int, steps: int) -> Run:
    """The coarse token only, as a language model's step is: what `generate` of a token model does.

    The compiled step's own functions, without depth decoder and codec; a model with mel hears the prompt's last slice
    again and again, which costs what a new one costs.
    """

    def run() -> Clocks:
        slots = filled(NumbaBackend(bundle, rows), bundle)
        assert isinstance(slots, NumbaBackend)
        weights: Any = slots._weights  # the benchmark looks into the engine: it has no such step of its own
        every = np.arange(rows)
        numbers = np.random.default_rng(0)

        def step() -> None:
            codes, logprobs = np.empty((rows, 1), np.int64), np.empty((rows, 1), np.float32)
            _token_step(
                weights.model, weights.fine, slots._state, slots._options, every, numbers.random((rows, 1)),
                slots._buffers, codes, logprobs,
            )  # fmt: skip

        step()
        begin = clocks()
        for _ in range(steps):
            step()
        return each(since(begin), steps)

    return run


def torch_token_step(bundle: Bundle, rows: int, steps: int) -> Run:
    """The same in torch: ring caches of static shape, as the torch backend steps on a GPU or for other codecs."""
    model = bundle.lm
    options = RowOptions([SamplingOptions(seed=row) for row in range(rows)], bundle.device)

    @torch.inference_mode()
    def run() -> Clocks:
        prompt = prefill(bundle, a_prompt())
        rings: LMSlots = model.new_slots(rows)
        for row in range(rows):
            rings.join(row, prompt.cache)
        rings.attend_to(-(-(PROMPT_POSITIONS + steps + 2) // 64) * 64)
        token, going = prompt.codes[:, :1].expand(rows, 1), torch.ones(rows, dtype=torch.bool)
        mel_frames = prompt.mel[:, -1:].expand(rows, 1, -1)
        begin = clocks()
        for index in range(steps + 1):
            if index == 1:
                begin = clocks()
            logits = model.logits(model(token, mel_frames, cache=rings)[:, 0])
            rings.advance(going)
            token = draw(logits, options, torch.rand(rows, dtype=torch.float64))[:, None]
        return each(since(begin), steps)

    return run


def uncached(bundle: Bundle, rows: int, steps: int) -> Run:
    """No cache: the whole context again for each token, in torch."""
    model = bundle.lm
    options = RowOptions([SamplingOptions(seed=row) for row in range(rows)], bundle.device)

    @torch.inference_mode()
    def run() -> Clocks:
        tokens = torch.randint(0, VOCABULARY, (rows, PROMPT_POSITIONS), generator=torch.Generator().manual_seed(0))
        begin = clocks()
        for _ in range(steps):
            logits = model.logits(model(tokens)[:, -1])
            token = draw(logits, options, torch.rand(rows, dtype=torch.float64))
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        return each(since(begin), steps)

    return run


def hugging_face(config: DecoderConfig, rows: int, steps: int, cache: Literal["dynamic", "static"]) -> Run:
    """`generate` of transformers, on its GPT-2 of the same layers, width and heads, with random weights.

    A logits processor that changes nothing reads the clocks at each token, so that the prompt is not in the figure.
    """
    ensure_importable()  # transformers imports torchaudio
    import transformers

    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCABULARY, n_positions=1024, n_embd=config.dim, n_layer=config.layers, n_head=config.heads,
            bos_token_id=0, eos_token_id=None, pad_token_id=0,
        )
    ).eval()  # fmt: skip
    ids = torch.randint(0, VOCABULARY, (rows, PROMPT_POSITIONS), generator=torch.Generator().manual_seed(0))
    more: dict[str, Any] = {}
    if cache == "static":
        # compiling takes a minute and was slower at this size on a CPU
        more = {"cache_implementation": "static", "disable_compile": True}

    @torch.inference_mode()
    def run() -> Clocks:
        at: list[Clocks] = []

        def clock(ids: Tensor, scores: Tensor) -> Tensor:
            at.append(clocks())
            return scores

        gpt2.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=steps + 1,
            min_new_tokens=steps + 1, logits_processor=transformers.LogitsProcessorList([clock]), **more,
        )  # fmt: skip
        assert len(at) == steps + 1, f"{len(at)} tokens instead of {steps + 1}"
        return each((at[-1][0] - at[0][0], at[-1][1] - at[0][1]), steps)

    return run


def each(total: Clocks, steps: int) -> Clocks:
    return total[0] / steps, total[1] / steps
