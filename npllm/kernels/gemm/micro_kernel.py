"""The innermost loop of the matrix product: a tile of C, in registers, along the depth.

    C[i, j] = sum over k of A[i, k] B[k, j] + addend[i, j] + bias[j]         for the rows and columns that `tile` says

Numba turns loops into vector instructions, but does not keep a tile of sums in registers. So this loop is written in
LLVM's intermediate representation: for every k, load a row of B, which is two or three registers; then broadcast one
element of A after the other, and multiply it onto its row of sums: one FMA a register, where the CPU has that.

Every sum is one chain of FMAs from the first k to the last, wherever in the product its tile lies.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npllm.kernels.gemm.instructions import INT32, INT64, element_type, elements_at, emit_prefetch
from npllm.kernels.gemm.tile import ROWS, TILE, register_lanes, tile_columns
from npllm.kernels.jit import replacing

ZEROS = np.zeros(64)  # no fewer bytes than a row of any tile


def multiply_tile(zero, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias):
    """zero: a scalar of the elements' type. a, b, c, addend, bias: addresses. Steps in elements. depth: at least 1.

    A[i, k] is i a_row_step + k a_depth_step elements after a; the row C[i] begins i c_row_step elements after c, that
    of the addend, which may be C itself, i addend_row_step after addend. The rows of B follow each other from b on. The
    bias is one row. `ZEROS` can be given for either.
    """
    columns = tile_columns(zero.itemsize)
    a_tile = elements_at(a, (ROWS, depth), (a_row_step, a_depth_step), zero.dtype)
    b_panel = elements_at(b, (depth, columns), (columns, 1), zero.dtype)
    c_tile = elements_at(c, (ROWS, columns), (c_row_step, 1), zero.dtype)
    addend_tile = elements_at(addend, (ROWS, columns), (addend_row_step, 1), zero.dtype)
    c_tile[:] = a_tile @ b_panel + addend_tile + elements_at(bias, (columns,), (1,), zero.dtype)


@replacing(multiply_tile, inline=False)
def _(zero, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias):
    def emit(zero, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias):
        _multiply_tile(zero, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias)

    return emit


@intrinsic
def _multiply_tile(typing, zero, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias):
    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")  # or every caller would be compiled with copies of it
        real, itemsize = element_type(context, zero)
        _, a, a_row_step, a_depth_step, b, depth, c, c_row_step, addend, addend_row_step, bias = arguments
        a, b, c, addend, bias = (builder.inttoptr(start, real.as_pointer()) for start in (a, b, c, addend, bias))
        emitter = _TileEmitter(builder, real, itemsize)
        c_rows, addend_rows = emitter.rows(c, c_row_step), emitter.rows(addend, addend_row_step)
        emitter.prefetch(c_rows, to_write=True)
        emitter.prefetch(addend_rows, to_write=False)
        sums = emitter.sums(emitter.rows(a, a_row_step), a_depth_step, b, depth)
        emitter.store(sums, c_rows, addend_rows, bias)
        return context.get_dummy_value()

    return types.void(zero, *[types.intp] * 10), generate


class _TileEmitter:
    """Writes the instructions for one element type. Registers of a tile are listed row by row."""

    def __init__(self, builder: ir.IRBuilder, real: ir.Type, itemsize: int):
        self.builder, self.itemsize = builder, itemsize
        self.lanes = register_lanes(itemsize)
        self.register = ir.VectorType(real, self.lanes)
        kind = ir.FunctionType(self.register, [self.register] * 3)
        self.fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{self.lanes}f{8 * itemsize}")

    def rows(self, start, step):
        """Pointers to the rows of a tile."""
        return [self.builder.gep(start, [self.builder.mul(INT64(i), step)]) for i in range(ROWS)]

    def prefetch(self, rows, to_write):
        """They are wanted when the sums are complete, and may be pages apart, where no hardware foresees them."""
        for row in rows:
            for column in (0, tile_columns(self.itemsize) - 1):
                emit_prefetch(self.builder, self.builder.gep(row, [INT64(column)]), to_write)

    def sums(self, a_rows, a_depth_step, b, depth):
        """The loop over k."""
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, a_offset, b_offset = (builder.phi(INT64) for _ in range(3))
        sums = [builder.phi(self.register) for _ in range(ROWS * TILE.vectors)]
        new_sums = self.multiply_add(a_rows, a_offset, b, b_offset, sums)
        steps = {k: INT64(1), a_offset: a_depth_step, b_offset: INT64(tile_columns(self.itemsize))}
        for phi, step in steps.items():
            phi.add_incoming(INT64(0), before)
            phi.add_incoming(builder.add(phi, step), loop)
        for phi, new in zip(sums, new_sums, strict=True):
            phi.add_incoming(self.register(None), before)
            phi.add_incoming(new, loop)
        next_k, _ = k.incomings[1]
        builder.cbranch(builder.icmp_signed("<", next_k, depth), loop, after)
        builder.position_at_end(after)
        return new_sums

    def multiply_add(self, a_rows, a_offset, b, b_offset, sums):
        """One k: the sums with A's column times B's row added."""
        builder = self.builder
        b_row = [self.load(b, builder.add(b_offset, INT64(v * self.lanes))) for v in range(TILE.vectors)]
        new_sums = []
        for a_row in a_rows:
            a_ik = self.broadcast(builder.load(builder.gep(a_row, [a_offset])))
            new_sums += [builder.call(self.fma, [a_ik, b_kv, sums[len(new_sums) + v]]) for v, b_kv in enumerate(b_row)]
        return new_sums

    def store(self, sums, c_rows, addend_rows, bias):
        offsets = [INT64(v * self.lanes) for v in range(TILE.vectors)]
        bias_row = [self.load(bias, offset) for offset in offsets]
        for i in range(ROWS):
            for v, offset in enumerate(offsets):
                value = self.builder.fadd(sums[i * TILE.vectors + v], self.load(addend_rows[i], offset))
                value = self.builder.fadd(value, bias_row[v])
                self.builder.store(value, self.register_pointer(c_rows[i], offset), align=self.itemsize)

    def load(self, start, offset):
        return self.builder.load(self.register_pointer(start, offset), align=self.itemsize)

    def register_pointer(self, start, offset):
        return self.builder.bitcast(self.builder.gep(start, [offset]), self.register.as_pointer())

    def broadcast(self, scalar):
        undefined = ir.Constant(self.register, ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, INT32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, self.lanes), None))
