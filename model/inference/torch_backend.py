"""Slots: many continuations in one closed loop; rows join and leave between steps.

Shapes never change: every step computes every row, taken or free. So a row's arithmetic is the same whatever its
neighbours hold and however many are active: its result is the same to the bit. (CPU kernels work row by row only for
row counts that are a multiple of 4 [`padded`]; a change of shape is what changes bits.)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger

import torch
from torch import Tensor

from model.checkpoint import Bundle
from model.codec.streaming import StreamingDecoder
from model.constants import MEL_BANDS, MEL_LEFT_SAMPLES
from model.inference import cuda
from model.inference.closed_loop import LoopState, closed_loop_step
from model.inference.rng import Numbers
from model.inference.sampling import RowOptions, SamplingOptions
from model.inference.types import Frames, PromptState, RowSnapshot

log = getLogger(__name__)
ROWS_MULTIPLE = 4  # of rows: what CPU matrix kernels need to treat every row alike (DESIGN.md, section 7)
ATTENDED_MULTIPLE = 64  # of slots that attention looks at on a CPU


def padded(rows: int, device: torch.device) -> int:
    """Rows to compute for so many slots."""
    return rows if device.type != "cpu" else -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE


class TorchBackend:
    """A fixed number of rows, on a CPU or a GPU, for any bundle.

    All state stays where it is in memory: a step reads and writes the same tensors every time. On a GPU its operations
    are recorded once, as a CUDA graph, and launched together.

    Args:
        bundle: the model; its weights are shared.
        rows: slots.
        codebooks: codes a frame; the codec's number by default. Prompts must have been read for the same number.
        fixed: compute what a graph would, whatever the rows ask for. On a GPU always so.
    """

    def __init__(self, bundle: Bundle, rows: int, codebooks: int | None = None, fixed: bool = False) -> None:
        self.bundle, self.rows = bundle, rows
        self.codebooks = codebooks or bundle.codec.config.codebooks
        self.width = padded(rows, bundle.device)
        device = bundle.device
        self._stream = cuda.new_stream(device, urgent=True)  # whichever thread steps
        with cuda.on(device, self._stream), torch.inference_mode():
            self._decoder = StreamingDecoder(bundle.codec)
            self._lm = bundle.lm.new_slots(self.width)
            self._state = LoopState(
                codes=torch.zeros(self.width, self.codebooks, dtype=torch.int64, device=device),
                mel=torch.zeros(self.width, 1, MEL_BANDS, device=device),
                codec=self._decoder.start(self.width),
                tail=torch.zeros(self.width, MEL_LEFT_SAMPLES, device=device),
            )
            self._uniform = torch.zeros(self.width, self.codebooks, dtype=torch.float64, device=device)
            self._going = torch.zeros(self.width, dtype=torch.bool, device=device)
        pinned = device.type == "cuda"
        self._host_uniform = torch.zeros(self.width, self.codebooks, dtype=torch.float64, pin_memory=pinned)
        self._host_going = torch.zeros(self.width, dtype=torch.bool, pin_memory=pinned)
        self._fixed = fixed or device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager = not cuda.graphs_wanted()
        self._made: tuple[Tensor, ...] = ()  # what a graph fills
        self._host_made: tuple[Tensor, ...] = ()
        self._numbers: list[Numbers | None] = [None] * self.width
        self._options = [SamplingOptions()] * self.width
        with cuda.on(device, self._stream):
            self._drawing = RowOptions(self._options, device, skip=not self._fixed)
        self._lengths = [0] * self.width  # positions seen, on the host: the CPU attends to no more slots than needed

    def join(self, row: int, prompt: PromptState | RowSnapshot, options: SamplingOptions, choice: int = 0) -> None:
        """The row goes on from a prompt, or from where a row stood, which stays as it is.

        Raises ValueError when it was read in another way.
        """
        if prompt.codebooks != self.codebooks or (isinstance(prompt, PromptState) and prompt.masked):
            raise ValueError("the prompt was read for another mel source or number of codebooks")
        if isinstance(prompt, RowSnapshot):
            cache, before = prompt.held
            ready, made = None, prompt.frames
        else:
            cache, ready, made = prompt.cache, prompt.ready, 0
            before = LoopState(prompt.codes, prompt.mel[:, -1:], prompt.codec, prompt.tail)
        with self._computing():
            if ready is not None:  # another thread has read it, on a stream of its own
                torch.cuda.current_stream().wait_event(ready)
            self._lm.join(row, cache)
            state = self._state = self._state._replace(codec=self._state.codec.joined(row, before.codec, self.width))
            for name in ("codes", "mel", "tail"):
                getattr(state, name)[row] = getattr(before, name)[0]
            if self._stream is not None:  # the prompt's memory may be given to others from now on
                self._stream.synchronize()
        self._lengths[row] = cache.length
        self._numbers[row] = Numbers(options.seed, choice, self.codebooks, made)
        self._ask(row, options)

    def snapshot(self, row: int) -> RowSnapshot:
        """A copy of a taken row as it stands, on the bundle's device."""
        numbers = self._numbers[row]
        assert numbers is not None, f"row {row} is free"
        with self._computing():
            cache = self._lm.left(row, self._lengths[row])
            state = self._state
            codes, mel, tail = (part[row : row + 1].clone() for part in (state.codes, state.mel, state.tail))
            held = LoopState(codes, mel, state.codec.left(row), tail)
            last = tail[0].cpu().numpy()
            if self._stream is not None:  # others may read it, on streams of their own
                self._stream.synchronize()
        rings = [part for ring in (cache.mel, cache.stack) if ring is not None for part in (ring.keys, ring.values)]
        size = sum(part.nbytes for part in (*rings, codes, mel, tail, *held.codec.tensors))
        return RowSnapshot((cache, held), last, numbers.frame, self.codebooks, size)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with cuda.on(self.bundle.device, self._stream), torch.inference_mode():
            yield

    def _ask(self, row: int, options: SamplingOptions) -> None:
        self._options[row] = options
        asked = RowOptions(self._options, None if self._fixed else self.bundle.device, skip=not self._fixed)
        if self._fixed:
            with cuda.on(self.bundle.device, self._stream):
                self._drawing.copy_(asked)
        else:
            self._drawing = asked

    def leave(self, row: int) -> None:
        """The row is free. What it held stays in place until another joins, and changes nothing."""
        self._numbers[row] = None
        self._ask(row, SamplingOptions())
        self._lengths[row] = 0

    def step(self, active: Sequence[int]) -> Frames:
        """Make one frame of each active row; the others' states stay as they are."""
        self._host_going.zero_()
        for row in active:
            numbers = self._numbers[row]
            assert numbers is not None, f"row {row} is free"
            self._host_uniform[row] = torch.from_numpy(numbers.next())
            self._host_going[row] = True
        if self.bundle.device.type == "cpu" and active:
            longest = 1 + max(self._lengths[row] for row in active)
            self._lm.attend_to(-(-longest // ATTENDED_MULTIPLE) * ATTENDED_MULTIPLE)
        with self._computing():
            self._uniform.copy_(self._host_uniform, non_blocking=True)
            self._going.copy_(self._host_going, non_blocking=True)
            made = self._step() if self.bundle.device.type != "cuda" else self._launch()
            codes, logprobs, fine, samples, mel = (part.numpy()[list(active)] for part in made)
        for row in active:
            self._lengths[row] += 1
        return Frames(codes, logprobs, fine, samples, mel)

    def _launch(self) -> tuple[Tensor, ...]:
        """`_step` on a GPU, as a graph that is recorded at the first step; its results on the host."""
        if self._graph is None and not self._eager:
            self._record()
        if self._graph is None:
            self._made = self._step()
        else:
            self._graph.replay()
        if not self._host_made:
            self._host_made = tuple(torch.empty_like(part, device="cpu", pin_memory=True) for part in self._made)
        for host, part in zip(self._host_made, self._made, strict=True):
            host.copy_(part, non_blocking=True)
        torch.cuda.current_stream().synchronize()  # once a step, for all rows
        return self._host_made

    def _record(self) -> None:
        """The graph, and whether it makes what the plain step makes: where it does not, steps are plain from now on."""
        going = self._going.clone()
        self._going.zero_()  # no row moves on
        for _ in range(3):  # libraries allocate at their first use, which no graph may record
            plain = tuple(part.clone() for part in self._step())
        self._graph = torch.cuda.CUDAGraph()
        # On a stream of this device: torch's own for captures is on the device that captured first. The mode: others
        # read prompts meanwhile.
        stream = cuda.new_stream(self.bundle.device)
        with torch.cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._made = self._step()
        self._graph.replay()
        if not cuda.agree(self._made, plain):
            log.warning("the CUDA graph of a step makes other results than its operations, and is not used")
            self._graph, self._eager = None, True
        self._going.copy_(going)

    def _step(self) -> tuple[Tensor, ...]:
        """One step in place: what `LoopFrame` has, of every row"""
        state, going = self._state, self._going
        frame, after = closed_loop_step(self.bundle, self._decoder, self._lm, state, self._drawing, self._uniform)
        self._lm.advance(going)
        state.codec.move_on(after.codec, going)
        for name in ("codes", "mel", "tail"):
            old, new = getattr(state, name), getattr(after, name)
            old.copy_(torch.where(going.view(-1, *[1] * (old.dim() - 1)), new, old))
        return tuple(frame)
