"""Matrix products that treat every row alike, to the bit, however many rows there are.

Weights lie in tiles of 64 outputs, (tiles, K, 64). A kernel holds a block of 1 to 4 rows of a tile's outputs in
registers and adds one k after the other with a fused multiply-add, so an output is always the same sum in the same
order: a library's product picks another order for another number of rows. Weights that fit float16 stay float16 in
memory and are widened on the way (exact), which halves the bytes that a step must read.

The kernels are written as LLVM vectors, since numba cannot keep a tile in registers by itself. What they hold at a time
depends on the processor; the bits do not.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from model.inference.numba_backend.jit import compiled

TILE = 64  # outputs of a tile
NARROW = 16  # outputs of a tile of a matrix with few outputs and many rows (the encoder's at high rates)
ROWS, NARROW_ROWS = 4, 8  # of a block, at most
# What a kernel holds of a tile at a time, for blocks of 1 to 4 rows: (lanes of a vector, vectors); the rest of the tile
# follows. With 32 registers of 16 lanes all of it fits; to widen 8 lanes at a time is half as fast again where little
# else is done (Zen 4). With 16 registers (AVX2) more would spill: 57 GFLOP/s instead of 104 at 4 rows.
MANY_REGISTERS = ((8, 8), (8, 8), (16, 4), (16, 4))
FEW_REGISTERS = ((8, 8), (8, 4), (8, 2), (8, 2))

_triple, _, _features = cpu_target.target_context.codegen().magic_tuple()
HELD = MANY_REGISTERS if "+avx512f" in _features else FEW_REGISTERS
NARROW_HELD = (16, 1) if "+avx512f" in _features else (8, 1)
# processors of x86 before 2012 cannot widen float16, and LLVM would call a function that is not there
WIDENS_HALVES = "+f16c" in _features or _triple.startswith(("aarch64", "arm64"))


def is_half(weight: npt.NDArray[np.float32]) -> bool:
    """Is every weight a float16?"""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(weight.astype(np.float16).astype(np.float32), weight))


def pack(weight: npt.NDArray[np.float32], half: bool, tile: int = TILE) -> npt.NDArray[Any]:
    """A matrix (N, K) as tiles (ceil(N / tile), K, tile), with zeros for outputs that are not there.

    ``half``: as uint16 that holds float16, exact where `is_half`; else float32.
    """
    outputs, inputs = weight.shape
    tiles = -(-outputs // tile)
    padded = np.zeros((tiles * tile, inputs), np.float32)
    padded[:outputs] = weight
    packed = np.ascontiguousarray(padded.reshape(tiles, tile, inputs).transpose(0, 2, 1))
    return packed.astype(np.float16).view(np.uint16) if half else packed


def _block(rows: int, width: int, held: tuple[int, int]) -> Any:
    """A kernel for a block of so many rows: y[row : row + rows, width tile : width (tile + 1)] += x @ w[tile]."""
    lanes, vectors = held
    vector, halves = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(ir.HalfType(), lanes)
    i32 = ir.IntType(32)

    @intrinsic  # type: ignore[untyped-decorator]
    def kernel(typing_context: Any, x: Any, w: Any, y: Any, row: Any, tile: Any) -> Any:
        half = w.dtype == types.uint16

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values = [
                context.make_array(kind)(context, builder, one)
                for kind, one in zip((x, w, y), arguments[:3], strict=True)
            ]
            x_data, w_data, y_data = (value.data for value in values)
            x_width, y_width = (builder.extract_value(values[i].shape, 1) for i in (0, 2))
            inputs = builder.extract_value(values[1].shape, 1)
            first, which = arguments[3:]
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{lanes}f32"
            )

            def number(value: int) -> Any:
                return ir.Constant(inputs.type, value)

            def at(data: Any, index: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

            def widened(index: Any) -> Any:
                loaded = builder.load(at(w_data, index, halves if half else vector), align=2 if half else 4)
                return builder.fpext(loaded, vector) if half else loaded

            def splat(value: Any) -> Any:
                nothing = ir.Constant(vector, ir.Undefined)
                one = builder.insert_element(nothing, value, ir.Constant(i32, 0))
                return builder.shuffle_vector(one, nothing, ir.Constant(ir.VectorType(i32, lanes), [0] * lanes))

            block = [builder.add(first, number(r)) for r in range(rows)]
            sums = [[cgutils.alloca_once(builder, vector) for _ in range(vectors)] for _ in range(rows)]
            with cgutils.for_range(builder, number(width // (lanes * vectors)), intp=inputs.type) as part:
                column = builder.mul(part.index, number(lanes * vectors))
                output = builder.add(builder.mul(which, number(width)), column)
                places = [
                    [
                        at(y_data, builder.add(builder.add(builder.mul(r, y_width), output), number(v * lanes)), vector)
                        for v in range(vectors)
                    ]
                    for r in block
                ]
                for r in range(rows):
                    for v in range(vectors):
                        builder.store(builder.load(places[r][v], align=4), sums[r][v])
                start = builder.add(builder.mul(which, builder.mul(inputs, number(width))), column)
                with cgutils.for_range(builder, inputs, intp=inputs.type) as loop:
                    line = builder.add(start, builder.mul(loop.index, number(width)))
                    weights = [widened(builder.add(line, number(v * lanes))) for v in range(vectors)]
                    for r in range(rows):
                        index = builder.add(builder.mul(block[r], x_width), loop.index)
                        one = splat(builder.load(builder.gep(x_data, [index])))
                        for v in range(vectors):
                            added = builder.call(fma, [weights[v], one, builder.load(sums[r][v])])
                            builder.store(added, sums[r][v])
                for r in range(rows):
                    for v in range(vectors):
                        builder.store(builder.load(sums[r][v]), places[r][v], align=4)
            return context.get_dummy_value()

        return types.void(x, w, y, types.intp, types.intp), generate

    return kernel


_one, _two, _three, _four = (_block(rows, TILE, HELD[rows - 1]) for rows in range(1, ROWS + 1))
_narrow_one, _narrow_eight = (_block(rows, NARROW, NARROW_HELD) for rows in (1, NARROW_ROWS))

CHECKED = bool(config.BOUNDSCHECK)  # a debug run: the kernels are beyond what numba itself checks then


@compiled
def _check(x: Any, w: Any, y: Any, rows: int) -> None:
    """Raises IndexError when a product would write beyond an array, or read rows that are not there.

    (How long a row of x is cannot be told here: those of the encoder's convolutions overlap, on purpose.)
    """
    if rows > x.shape[0] or rows > y.shape[0] or w.shape[0] * w.shape[2] > y.shape[1]:
        raise IndexError("a product reaches beyond its arrays")


@compiled
def add_row(x: Any, w: Any, y: Any) -> None:
    """`add_product` of one row, for what is no matrix of weights: x (1, K), w (tiles, K, 64), y (1, 64 tiles)."""
    if CHECKED:
        _check(x, w, y, 1)
    for tile in range(w.shape[0]):
        _one(x, w, y, 0, tile)


@compiled
def add_product(x: Any, w: Any, y: Any, rows: int) -> None:
    """y += x @ W^T for the first ``rows`` rows: x (R, K), w packed, y (R, 64 tiles or more), float32."""
    if CHECKED:
        _check(x, w, y, rows)
    for tile in range(w.shape[0]):
        row = 0
        while row + 4 <= rows:
            _four(x, w, y, row, tile)
            row += 4
        if rows - row == 3:
            _three(x, w, y, row, tile)
        elif rows - row == 2:
            _two(x, w, y, row, tile)
        elif rows - row == 1:
            _one(x, w, y, row, tile)


@compiled
def add_narrow(x: Any, w: Any, y: Any, rows: int) -> None:
    """`add_product` for tiles of 16 outputs."""
    if CHECKED:
        _check(x, w, y, rows)
    for tile in range(w.shape[0]):
        row = 0
        while row + NARROW_ROWS <= rows:
            _narrow_eight(x, w, y, row, tile)
            row += NARROW_ROWS
        while row < rows:
            _narrow_one(x, w, y, row, tile)
            row += 1
