"""Vector instructions that Numba does not emit itself, as functions for kernels.

Each function is written twice: as Python, which defines the result and runs when Numba
is switched off, and as the instructions. Arrays are flat here, and an element is given
by its index. Nothing is checked.
"""

from ctypes import c_char

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npllm.kernels.gemm.tile import TILE_ROWS, register_lanes, tile_columns
from npllm.kernels.jit import inlined, replacing

INT32, INT64 = ir.IntType(32), ir.IntType(64)
BYTE_POINTER = ir.IntType(8).as_pointer()


@inlined
def address(array, index):
    """Return the address of an element, in bytes."""
    return array.ctypes.data + index * array.itemsize


def elements_at(address, shape, steps, dtype) -> np.ndarray:
    """Return the elements from an address on, without Numba; steps in elements."""
    last = sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    memory = (c_char * ((last + 1) * dtype.itemsize)).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=[step * dtype.itemsize for step in steps])


def element_type(context, scalar) -> tuple[ir.Type, int]:
    """Return LLVM's type of a Numba scalar, and its size in bytes."""
    return context.get_value_type(scalar), scalar.bitwidth // 8


def _copy_of(width):
    """Return a function that copies width(itemsize) elements at once."""

    def copy(source, source_start, target, target_start):
        n = width(source.itemsize)
        target[target_start : target_start + n] = source[source_start : source_start + n]

    @intrinsic
    def emit(typing, like, source, target):
        def generate(context, builder, signature, arguments):
            real, itemsize = element_type(context, like.dtype)
            pointer = ir.VectorType(real, width(itemsize)).as_pointer()
            source, target = (builder.inttoptr(argument, pointer) for argument in arguments[1:])
            builder.store(builder.load(source, align=itemsize), target, align=itemsize)
            return context.get_dummy_value()

        return types.void(like, types.intp, types.intp), generate

    @replacing(copy)
    def _(source, source_start, target, target_start):
        return lambda source, source_start, target, target_start: emit(
            source, address(source, source_start), address(target, target_start)
        )

    return copy


copy_register = _copy_of(register_lanes)
copy_tile_height = _copy_of(lambda itemsize: TILE_ROWS)
copy_tile_width = _copy_of(tile_columns)


def transpose_square(source, source_start, source_step, target, target_start, target_step):
    """Transpose a square that is as wide as a register of the target's elements.

    An element of the source may be a part of an element of the target: two bfloat16 in
    a uint32. The steps lead from row to row.
    """
    lanes = np.arange(register_lanes(target.itemsize))
    parts = np.arange(len(lanes) * target.itemsize // source.itemsize)
    square = source[source_start + source_step * lanes[:, None] + parts].view(target.dtype)
    target[target_start + target_step * lanes[:, None] + lanes] = square.T


@replacing(transpose_square)
def _(source, source_start, source_step, target, target_start, target_step):
    def emit(source, source_start, source_step, target, target_start, target_step):
        rows, columns = address(source, source_start), address(target, target_start)
        _transpose_square(target, rows, source_step * source.itemsize, columns, target_step * target.itemsize)

    return emit


@intrinsic
def _transpose_square(typing, like, source, source_step, target, target_step):
    """Emit `transpose_square`; the steps are in bytes."""

    def generate(context, builder, signature, arguments):
        real, itemsize = element_type(context, like.dtype)
        lanes = register_lanes(itemsize)
        pointer = ir.VectorType(real, lanes).as_pointer()
        _, source, source_step, target, target_step = arguments

        def row_pointer(start, step, i):
            return builder.inttoptr(builder.add(start, builder.mul(step, INT64(i))), pointer)

        rows = [builder.load(row_pointer(source, source_step, i), align=1) for i in range(lanes)]
        for i, row in enumerate(_transposed(builder, rows)):
            builder.store(row, row_pointer(target, target_step, i), align=itemsize)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 4), generate


def _transposed(builder, rows):
    """Return the transposed rows.

    The first half of the rows is interleaved with the second half log2(rows) times.
    """
    n = len(rows)
    mask = ir.VectorType(INT32, n)
    shuffled = [i for pair in zip(range(n), range(n, 2 * n), strict=True) for i in pair]
    low, high = (ir.Constant(mask, [INT32(i) for i in half]) for half in (shuffled[:n], shuffled[n:]))
    for _ in range(n.bit_length() - 1):
        pairs = list(zip(rows[: n // 2], rows[n // 2 :], strict=True))
        rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in (low, high)]
    return rows


def prefetch(array, index):
    """Start to load the cache line of an element, which may be beyond the array."""


@replacing(prefetch)
def _(array, index):
    return lambda array, index: _prefetch(address(array, index))


@intrinsic
def _prefetch(typing, source):
    def generate(context, builder, signature, arguments):
        emit_prefetch(builder, builder.inttoptr(arguments[0], BYTE_POINTER), to_write=False)
        return context.get_dummy_value()

    return types.void(types.intp), generate


def emit_prefetch(builder, pointer, to_write: bool):
    """Emit the instruction that loads into the cache nearest to the core."""
    kind = ir.FunctionType(ir.VoidType(), [BYTE_POINTER, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, BYTE_POINTER), INT32(int(to_write)), INT32(3), INT32(1)])
