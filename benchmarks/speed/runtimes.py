"""The language model's step compiled by Numba, in plain torch, by AOTInductor and by ONNX Runtime.

    python -m benchmarks.speed.runtimes                  # about 6 minutes, most of it AOTInductor's compiler
    python -m benchmarks.speed.runtimes --rows 1 4 --turns 1 --steps 8 --out /tmp/runtimes.json

What all four do in a step: token, mel frame and position of each row in, mel encoder and stack over a prompt of 3 s and
what came since, logits of the next coarse token out, keys and values kept. Nothing is drawn, and there is no depth
decoder and no codec: those are loops of many small calls, which neither of the two would hold in one. The two get a
graph of so many rows and slots and no others. All read the same tokens and mel frames, in turns in one process, and
their logits are compared: with torch's, and a row's bits in company with its bits alone.

AOTInductor needs a C++ compiler, ONNX Runtime ``pip install -e ".[bench]"``.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.speed.baselines import PROMPT_POSITIONS, a_prompt, each, filled
from benchmarks.speed.exported import ExportedStep, HostCaches, Inductor, OnnxRuntime
from benchmarks.speed.timing import Clocks, Figure, clocks, conditions, console, in_turns, since, step_arguments, write
from model.checkpoint import Bundle, load_bundle
from model.constants import MEL_BANDS, VOCABULARY
from model.inference.numba_backend.backend import NumbaBackend
from model.inference.numba_backend.jit import compiled
from model.inference.numba_backend.lm_step import lm_logits
from model.inference.prefill import prefill

NUMBA, TORCH, INDUCTOR, ONNX = "Numba, as shipped", "torch, eager", "AOTInductor", "ONNX Runtime"
SLOTS_MULTIPLE = 64
MOST_ROWS = 32
Logits = npt.NDArray[np.float32]


class Inputs:
    """Tokens (steps, R, 1) and mel frames (steps, R, 1, 64); a row's are the same in any company."""

    def __init__(self, bundle: Bundle, rows: int, steps: int) -> None:
        rng = np.random.default_rng(0)
        shape = (steps, max(rows, MOST_ROWS))
        self.tokens = np.ascontiguousarray(rng.integers(0, VOCABULARY, shape)[:, :rows, None])
        noise = rng.standard_normal((*shape, 1, MEL_BANDS))[:, :rows]
        mean, deviation = bundle.lm.mel_mean.numpy(), bundle.lm.mel_std.numpy()
        self.mel = np.ascontiguousarray((mean + deviation * noise).astype(np.float32))
        self.rows, self.steps = rows, steps


Step = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float32]], Any]
Begin = Callable[[], Step]  # from the prompt's state anew


class Contender:
    """Runs a way to step through the inputs, and keeps what the last step's logits were."""

    def __init__(self, begin: Begin, inputs: Inputs) -> None:
        self._begin, self._inputs = begin, inputs
        self.logits: Logits = np.empty(0, np.float32)

    def __call__(self) -> Clocks:
        step, inputs = self._begin(), self._inputs
        step(inputs.tokens[0], inputs.mel[0])
        begin = clocks()
        for index in range(1, inputs.steps):
            logits = step(inputs.tokens[index], inputs.mel[index])
        total = since(begin)
        self.logits = np.array(logits, np.float32)
        return each(total, inputs.steps - 1)


@compiled
def _logits(model: Any, state: Any, rows: Any, buffers: Any) -> None:
    lm_logits(model, state, rows, buffers)
    for a in range(rows.shape[0]):
        state.positions[rows[a]] += 1


def by_numba(bundle: Bundle, rows: int) -> Begin:
    """The compiled step's own function, alone."""

    def begin() -> Step:
        slots = filled(NumbaBackend(bundle, rows), bundle)
        assert isinstance(slots, NumbaBackend)
        weights: Any = slots._weights  # the benchmark looks into the engine: it has no such step of its own
        state, buffers, every = slots._state, slots._buffers, np.arange(rows)

        def step(tokens: npt.NDArray[np.int64], mel: npt.NDArray[np.float32]) -> Any:
            state.codes[:, 0] = tokens[:, 0]
            state.mel[:] = mel[:, 0]
            _logits(weights.model, state, every, buffers)
            return buffers.logits[:, :VOCABULARY]

        return step

    return begin


def by_torch(bundle: Bundle, rows: int, slots: int) -> Begin:
    """As the torch backend calls the language model: rings of static shape, of which ``slots`` are attended to."""

    def begin() -> Step:
        prompt = prefill(bundle, a_prompt())
        rings = bundle.lm.new_slots(rows)
        for row in range(rows):
            rings.join(row, prompt.cache)
        rings.attend_to(slots)
        going = torch.ones(rows, dtype=torch.bool)

        @torch.inference_mode()
        def step(tokens: npt.NDArray[np.int64], mel: npt.NDArray[np.float32]) -> Any:
            hidden = bundle.lm(torch.from_numpy(tokens), torch.from_numpy(mel), cache=rings)[:, 0]
            rings.advance(going)
            return bundle.lm.logits(hidden).numpy()

        return step

    return begin


def by_export(
    bundle: Bundle, rows: int, slots: int, runtime: type[Inductor] | type[OnnxRuntime], folder: Path
) -> Begin:
    """A graph of so many rows and slots, made once."""
    with torch.inference_mode():
        prompt = prefill(bundle, a_prompt())

    def caches() -> HostCaches:
        with torch.no_grad():
            return HostCaches(prompt.cache, rows, slots)

    first = caches()
    tokens, mel = torch.zeros(rows, 1, dtype=torch.int64), torch.zeros(rows, 1, MEL_BANDS)
    run = runtime(
        ExportedStep(bundle.lm, slots), (tokens, mel, torch.from_numpy(first.lengths), first.mel, first.stack), folder
    )

    def begin() -> Step:
        own = caches()
        return lambda tokens, mel: run(tokens, mel, own)

    return begin


def contenders(bundle: Bundle, rows: int, steps: int, folder: Path) -> dict[str, Contender]:
    """All four, for so many rows."""
    inputs = Inputs(bundle, rows, steps)
    slots = -(-(PROMPT_POSITIONS + steps + 1) // SLOTS_MULTIPLE) * SLOTS_MULTIPLE
    ways = {NUMBA: by_numba(bundle, rows), TORCH: by_torch(bundle, rows, slots)}
    for name, runtime in ((INDUCTOR, Inductor), (ONNX, OnnxRuntime)):
        own = folder / f"{name.split()[0]}-{rows}"
        own.mkdir()
        with console.status(f"{name}, {rows} rows: export"):
            ways[name] = by_export(bundle, rows, slots, runtime, own)
    return {name: Contender(begin, inputs) for name, begin in ways.items()}


def measure(
    bundle: Bundle, rows: int, steps: int, turns: int, folder: Path
) -> tuple[dict[str, Any], dict[str, Logits]]:
    """One number of rows; and each contender's logits of the last step (R, 1024)."""
    ways = contenders(bundle, rows, steps, folder)
    figures = {name: Figure.of(times, 1e3) for name, times in in_turns(ways, turns).items()}
    own = figures[NUMBA]
    found: dict[str, Any] = {"milliseconds_a_step": {}, "times_numba": {}, "most_off_torch": {}}
    for name, figure in figures.items():
        found["milliseconds_a_step"][name] = figure.to_dict()
        found["times_numba"][name] = {
            clock: getattr(figure, clock)["median"] / getattr(own, clock)["median"] for clock in ("wall", "processor")
        }
        off = float(np.abs(ways[name].logits - ways[TORCH].logits).max())
        found["most_off_torch"][name] = off
        wall, processor = figure.wall["median"], figure.processor["median"]
        print(f"{rows:3} rows  {name:20} {processor:8.3f} ms of processor, {wall:8.3f} of wall, {off:.1e} off torch")
    return found, {name: way.logits for name, way in ways.items()}


def main() -> None:
    """Measure, print, write."""
    arguments = step_arguments(__doc__, "runtimes.json")
    torch.set_num_threads(1)
    bundle = load_bundle(arguments.bundle)
    import onnxruntime

    made_on = conditions() | {
        "onnxruntime": onnxruntime.__version__, "bundle": bundle.name, "prompt_positions": PROMPT_POSITIONS,
        "steps": arguments.steps, "turns": arguments.turns,
    }  # fmt: skip
    console.print(made_on)
    found, logits = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in arguments.rows:
            found[str(rows)], logits[rows] = measure(bundle, rows, arguments.steps, arguments.turns, Path(folder))
    alone = arguments.rows[0]
    for rows in arguments.rows[1:]:
        same = {name: bool((made[0] == logits[alone][name][0]).all()) for name, made in logits[rows].items()}
        found[str(rows)][f"first_row_as_of_{alone}"] = same
        print(f"{rows:3} rows  the first row's logits have the bits that it has of {alone}: {same}")
    write(arguments.out, made_on, {"rows": found})


if __name__ == "__main__":
    main()
