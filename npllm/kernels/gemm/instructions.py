"""Vector instructions that Numba does not emit by itself, as functions that kernels call.

They take addresses, which are integers, and the element type from `like`, any array of it. Nothing is checked.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npllm.kernels.gemm.tile import ROWS, register_lanes, tile_columns
from npllm.kernels.jit import inlined

INT32, INT64 = ir.IntType(32), ir.IntType(64)
BYTE_POINTER = ir.IntType(8).as_pointer()


@inlined
def address(array, index):
    """Of an element of a contiguous array, counted from the first."""
    return array.ctypes.data + index * array.itemsize


def element_type(context, like) -> tuple[ir.Type, int]:
    """LLVM's type of an array's elements, and their size in bytes."""
    return context.get_value_type(like.dtype), like.dtype.bitwidth // 8


def _copy_of(width):
    """A copy of width(itemsize) elements at once."""

    @intrinsic
    def copy(typing, like, source, target):
        def generate(context, builder, signature, arguments):
            real, itemsize = element_type(context, like)
            pointer = ir.VectorType(real, width(itemsize)).as_pointer()
            source, target = (builder.inttoptr(argument, pointer) for argument in arguments[1:])
            builder.store(builder.load(source, align=itemsize), target, align=itemsize)
            return context.get_dummy_value()

        return types.void(like, types.intp, types.intp), generate

    return copy


copy_tile_height = _copy_of(lambda itemsize: ROWS)
copy_tile_width = _copy_of(tile_columns)


@intrinsic
def transpose_square(typing, like, source, source_step, target, target_step):
    """Transpose a square as wide as a register. The steps, in bytes, lead from row to row."""

    def generate(context, builder, signature, arguments):
        real, itemsize = element_type(context, like)
        lanes = register_lanes(itemsize)
        pointer = ir.VectorType(real, lanes).as_pointer()
        _, source, source_step, target, target_step = arguments

        def row_pointer(start, step, i):
            return builder.inttoptr(builder.add(start, builder.mul(step, INT64(i))), pointer)

        rows = [builder.load(row_pointer(source, source_step, i), align=itemsize) for i in range(lanes)]
        for i, row in enumerate(_transposed(builder, rows)):
            builder.store(row, row_pointer(target, target_step, i), align=itemsize)
        return context.get_dummy_value()

    return types.void(like, *[types.intp] * 4), generate


def _transposed(builder, rows):
    """Shuffling the first half of the rows into the second, as one does with cards, log2(rows) times."""
    n = len(rows)
    mask = ir.VectorType(INT32, n)
    shuffled = [i for pair in zip(range(n), range(n, 2 * n), strict=True) for i in pair]
    low, high = (ir.Constant(mask, [INT32(i) for i in half]) for half in (shuffled[:n], shuffled[n:]))
    for _ in range(n.bit_length() - 1):
        pairs = list(zip(rows[: n // 2], rows[n // 2 :], strict=True))
        rows = [builder.shuffle_vector(*pair, half) for pair in pairs for half in (low, high)]
    return rows


@intrinsic
def prefetch(typing, source):
    """Begin to load the cache line at an address, which need not be valid."""

    def generate(context, builder, signature, arguments):
        emit_prefetch(builder, builder.inttoptr(arguments[0], BYTE_POINTER), to_write=False)
        return context.get_dummy_value()

    return types.void(types.intp), generate


def emit_prefetch(builder, pointer, to_write: bool):
    """The instruction itself, into the cache nearest to the core."""
    kind = ir.FunctionType(ir.VoidType(), [BYTE_POINTER, INT32, INT32, INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, BYTE_POINTER), INT32(int(to_write)), INT32(3), INT32(1)])
