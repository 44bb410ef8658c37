"""Matrix products that treat every row alike, to the bit, however many rows there are.

Weights lie in tiles of 64 outputs, (tiles, K, 64). A kernel holds a block of 1 to 4 rows of a tile's outputs in
registers and adds one k after the other with a fused multiply-add, so an output is always the same sum in the same
order: a library's product picks another order for another number of rows. Weights that fit float16 stay float16 in
memory and are widened on the way (exact), which halves the bytes that a step must read.

The kernels are written as LLVM vectors, since numba cannot keep a tile in registers by itself.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from model.compiled.options import compiled

TILE = 64  # outputs of a tile
LANES = 16  # of a vector; LLVM splits it where registers are narrower
ROWS = 4  # of a block, at most

_vector = ir.VectorType(ir.FloatType(), LANES)
_halves = ir.VectorType(ir.HalfType(), LANES)


def is_half(weight: npt.NDArray[np.float32]) -> bool:
    """Is every weight a float16?"""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(weight.astype(np.float16).astype(np.float32), weight))


def pack(weight: npt.NDArray[np.float32], half: bool) -> npt.NDArray[Any]:
    """A matrix (N, K) as tiles (ceil(N / 64), K, 64), with zeros for outputs that are not there.

    ``half``: as uint16 that holds float16, exact where `is_half`; else float32.
    """
    outputs, inputs = weight.shape
    tiles = -(-outputs // TILE)
    padded = np.zeros((tiles * TILE, inputs), np.float32)
    padded[:outputs] = weight
    packed = np.ascontiguousarray(padded.reshape(tiles, TILE, inputs).transpose(0, 2, 1))
    return packed.astype(np.float16).view(np.uint16) if half else packed


def _block(rows: int) -> Any:
    """A kernel for a block of so many rows: y[row : row + rows, 64 tile : 64 (tile + 1)] += x @ w[tile]."""

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
                builder.module, ir.FunctionType(_vector, [_vector] * 3), f"llvm.fma.v{LANES}f32"
            )

            def number(value: int) -> Any:
                return ir.Constant(inputs.type, value)

            def at(data: Any, index: Any, kind: Any) -> Any:
                return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

            places, sums = [], []
            for r in range(rows):
                start = builder.add(
                    builder.mul(builder.add(first, number(r)), y_width), builder.mul(which, number(TILE))
                )
                for v in range(TILE // LANES):
                    place = at(y_data, builder.add(start, number(v * LANES)), _vector)
                    total = cgutils.alloca_once(builder, _vector)
                    builder.store(builder.load(place, align=4), total)
                    places.append(place)
                    sums.append(total)
            x_starts = [builder.mul(builder.add(first, number(r)), x_width) for r in range(rows)]
            w_start = builder.mul(which, builder.mul(inputs, number(TILE)))
            with cgutils.for_range(builder, inputs, intp=inputs.type) as loop:
                line = builder.add(w_start, builder.mul(loop.index, number(TILE)))
                weights = []
                for v in range(TILE // LANES):
                    place = at(w_data, builder.add(line, number(v * LANES)), _halves if half else _vector)
                    loaded = builder.load(place, align=2 if half else 4)
                    weights.append(builder.fpext(loaded, _vector) if half else loaded)
                for r in range(rows):
                    one = builder.load(builder.gep(x_data, [builder.add(x_starts[r], loop.index)]))
                    splat = builder.shuffle_vector(
                        builder.insert_element(ir.Constant(_vector, ir.Undefined), one, ir.Constant(ir.IntType(32), 0)),
                        ir.Constant(_vector, ir.Undefined),
                        ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES),
                    )
                    for v in range(TILE // LANES):
                        total = sums[r * (TILE // LANES) + v]
                        builder.store(builder.call(fma, [weights[v], splat, builder.load(total)]), total)
            for place, total in zip(places, sums, strict=True):
                builder.store(builder.load(total), place, align=4)
            return context.get_dummy_value()

        return types.void(x, w, y, types.intp, types.intp), generate

    return kernel


_one, _two, _three, _four = (_block(rows) for rows in range(1, ROWS + 1))


@compiled
def add_row(x: Any, w: Any, y: Any) -> None:
    """`add_product` of one row, for what is no matrix of weights: x (1, K), w (tiles, K, 64), y (1, 64 tiles)."""
    for tile in range(w.shape[0]):
        _one(x, w, y, 0, tile)


@compiled
def add_product(x: Any, w: Any, y: Any, rows: int) -> None:
    """y += x @ W^T for the first ``rows`` rows: x (R, K), w packed, y (R, 64 tiles or more), float32."""
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
