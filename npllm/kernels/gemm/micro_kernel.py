"""The innermost loop of the matrix product: a tile of C, in registers, along the depth.

    C[i, j] = sum over k of A[i, k] B[k, j] + addend[i, j] + bias[j]

i and j are the rows and columns of a tile (`tile`).

Numba turns loops into vector instructions, but it does not keep a tile of sums in
registers. This loop is therefore written in LLVM's intermediate representation. For
every k it loads a row of B, which is two or three registers. It then broadcasts one
element of A after the other and multiplies it onto its row of sums. Each register takes
one FMA, where the CPU has that instruction.

A lane of a register holds two k of bfloat16. Where the CPU has an instruction for it,
both are multiplied and added at once. Elsewhere each half of a lane is widened to
float32 by appending 16 zero bits.

Every sum is one chain of FMAs from the first k to the last, wherever its tile is in C.

Source of the instruction VDPBF16PS: "Intel 64 and IA-32 architectures software
developer's manual", volume 2.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from npllm.kernels.bfloat16 import widen
from npllm.kernels.gemm.instructions import INT32, INT64, element_type, elements_at, emit_prefetch
from npllm.kernels.gemm.tile import HAS_BFLOAT16_DOT, TILE, TILE_ROWS, factors_per_lane, register_lanes, tile_columns
from npllm.kernels.jit import replacing

ZEROS = np.zeros(64)  # at least as many bytes as a row of any tile


def multiply_tile(factor, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias):
    """Compute a tile of C from the addresses of all arrays.

    Steps are in elements. factor: a scalar of the type of A and B; uint16 stands for
    bfloat16, and C is then float32. lanes: the depth, at least 1, counted in lanes of
    one k or of two.

    A[i, k] is i a_row_step + k a_lane_step elements after a, where k counts lanes. The
    rows of B, each one lane deep, are contiguous from b on. The row C[i] starts i
    c_row_step elements after c. The row i of the addend starts i addend_row_step
    elements after addend; the addend may be C itself. The bias is one row. `ZEROS` can
    stand for the addend and for the bias.
    """
    depth, factors = factors_per_lane(factor.itemsize), factor.dtype
    real = np.dtype(np.float32) if depth == 2 else factors
    columns = tile_columns(real.itemsize)
    a_tile = widen(elements_at(a, (TILE_ROWS, lanes, depth), (a_row_step, a_lane_step, 1), factors))
    b_panel = widen(elements_at(b, (lanes, columns, depth), (columns * depth, depth, 1), factors))
    c_tile = elements_at(c, (TILE_ROWS, columns), (c_row_step, 1), real)
    addend_tile = elements_at(addend, (TILE_ROWS, columns), (addend_row_step, 1), real)
    c_tile[:] = np.einsum("ikd,kjd->ij", a_tile, b_panel) + addend_tile + elements_at(bias, (columns,), (1,), real)


@replacing(multiply_tile, inline=False)
def _(factor, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias):
    def emit(factor, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias):
        _multiply_tile(factor, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias)

    return emit


@intrinsic
def _multiply_tile(typing, factor, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias):
    def generate(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")  # else every caller holds copies of it
        emitter = _emitter(builder, context, factor)
        _, a, a_row_step, a_lane_step, b, lanes, c, c_row_step, addend, addend_row_step, bias = arguments
        a, b = (builder.inttoptr(start, emitter.factor.as_pointer()) for start in (a, b))
        c, addend, bias = (builder.inttoptr(start, emitter.real.as_pointer()) for start in (c, addend, bias))
        c_rows, addend_rows = emitter.rows(c, c_row_step), emitter.rows(addend, addend_row_step)
        emitter.prefetch(c_rows, to_write=True)
        emitter.prefetch(addend_rows, to_write=False)
        sums = emitter.sums(emitter.rows(a, a_row_step), a_lane_step, b, lanes)
        emitter.store(sums, c_rows, addend_rows, bias)
        return context.get_dummy_value()

    return types.void(factor, *[types.intp] * 10), generate


def _emitter(builder, context, factor):
    if factor != types.uint16:
        return _TileEmitter(builder, context, factor)
    return (_PairsEmitter if HAS_BFLOAT16_DOT else _HalvesEmitter)(builder, context)


class _TileEmitter:
    """Emits the instructions for one element type.

    The registers of a tile are listed row by row.
    """

    factors = 1  # in a lane

    def __init__(self, builder: ir.IRBuilder, context, scalar):
        """scalar: Numba's type of the elements of C."""
        self.builder = builder
        self.real, self.itemsize = element_type(context, scalar)
        self.factor = self.lane = self.real  # an element of A or B, and a lane of a register of them
        self.lanes = register_lanes(self.itemsize)
        self.register = ir.VectorType(self.real, self.lanes)
        kind, name = ir.FunctionType(self.register, [self.register] * 3), f"v{self.lanes}f{8 * self.itemsize}"
        self.fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.{name}")

    def rows(self, start, step):
        """Return pointers to the rows of a tile."""
        return [self.builder.gep(start, [self.builder.mul(INT64(i), step)]) for i in range(TILE_ROWS)]

    def prefetch(self, rows, to_write):
        """Prefetch the rows, which are needed when the sums are complete.

        They may be in different memory pages, which no hardware prefetches.
        """
        for row in rows:
            for column in (0, tile_columns(self.itemsize) - 1):
                emit_prefetch(self.builder, self.builder.gep(row, [INT64(column)]), to_write)

    def sums(self, a_rows, a_lane_step, b, lanes):
        """Emit the loop over k, and return the registers of the sums."""
        builder = self.builder
        before, loop, after = builder.block, builder.append_basic_block("depth"), builder.append_basic_block("summed")
        builder.branch(loop)
        builder.position_at_end(loop)
        k, a_offset, b_offset = (builder.phi(INT64) for _ in range(3))
        sums = [builder.phi(self.register) for _ in range(TILE_ROWS * TILE.vectors)]
        new_sums = self.add_products(a_rows, a_offset, b, b_offset, sums)
        b_step = INT64(tile_columns(self.itemsize) * self.factors)
        for phi, step in {k: INT64(1), a_offset: a_lane_step, b_offset: b_step}.items():
            phi.add_incoming(INT64(0), before)
            phi.add_incoming(builder.add(phi, step), loop)
        for phi, new in zip(sums, new_sums, strict=True):
            phi.add_incoming(self.register(None), before)
            phi.add_incoming(new, loop)
        next_k, _ = k.incomings[1]
        builder.cbranch(builder.icmp_signed("<", next_k, lanes), loop, after)
        builder.position_at_end(after)
        return new_sums

    def add_products(self, a_rows, a_offset, b, b_offset, sums):
        """Return the sums plus A's column times B's row, for one lane."""
        builder, vectors = self.builder, range(TILE.vectors)
        b_row = [self.load_factors(b, builder.add(b_offset, INT64(v * self.lanes * self.factors))) for v in vectors]
        new_sums = []
        for a_row in a_rows:
            a_ik = self.broadcast(builder.gep(a_row, [a_offset]))
            new_sums += [self.add_product(a_ik, b_kv, sums[len(new_sums) + v]) for v, b_kv in enumerate(b_row)]
        return new_sums

    def add_product(self, a, b, total):
        """a, b: registers of factors."""
        return self.builder.call(self.fma, [a, b, total])

    def store(self, sums, c_rows, addend_rows, bias):
        offsets = [INT64(v * self.lanes) for v in range(TILE.vectors)]
        bias_row = [self.load(bias, offset) for offset in offsets]
        for i in range(TILE_ROWS):
            for v, offset in enumerate(offsets):
                value = self.builder.fadd(sums[i * TILE.vectors + v], self.load(addend_rows[i], offset))
                value = self.builder.fadd(value, bias_row[v])
                self.builder.store(value, self.register_pointer(c_rows[i], offset), align=self.itemsize)

    def load(self, start, offset):
        return self.builder.load(self.register_pointer(start, offset), align=self.itemsize)

    def register_pointer(self, start, offset):
        return self.builder.bitcast(self.builder.gep(start, [offset]), self.register.as_pointer())

    def load_factors(self, start, offset):
        pointer = ir.VectorType(self.lane, self.lanes).as_pointer()
        return self.builder.load(self.builder.bitcast(self.builder.gep(start, [offset]), pointer), align=self.itemsize)

    def broadcast(self, pointer):
        """Return a register whose lanes all hold the factors at the pointer."""
        align = self.itemsize // self.factors
        lane = self.builder.load(self.builder.bitcast(pointer, self.lane.as_pointer()), align=align)
        undefined = ir.Constant(ir.VectorType(self.lane, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, lane, INT32(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(INT32, self.lanes), None))


class _PairsEmitter(_TileEmitter):
    """Emits the instruction VDPBF16PS, for bfloat16.

    A lane holds two factors, the first one in its low half.
    """

    factors = 2

    def __init__(self, builder: ir.IRBuilder, context):
        super().__init__(builder, context, types.float32)
        self.factor, self.lane = ir.IntType(16), INT32

    def add_product(self, a, b, total):
        pairs = ir.VectorType(_Bfloat(), 2 * self.lanes)
        kind = ir.FunctionType(self.register, [self.register, pairs, pairs])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes}"
        dot = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(dot, [total, *(self.builder.bitcast(register, pairs) for register in (a, b))])


class _HalvesEmitter(_PairsEmitter):
    """Emits FMAs for bfloat16 where the CPU has no such instruction.

    It multiplies all low halves first, then all high halves.
    """

    def add_products(self, *arguments):
        *addresses, sums = arguments
        barrier = ir.FunctionType(ir.VoidType(), [])
        for half in (self.low_half, self.high_half):
            self.half = half
            sums = super().add_products(*addresses, sums)
            # Loading both halves at once would need too many registers.
            self.builder.asm(barrier, "", "~{memory}", [], side_effect=True)
        return sums

    def load_factors(self, start, offset):
        return self.half(super().load_factors(start, offset))

    def broadcast(self, pointer):
        return self.half(super().broadcast(pointer))

    def add_product(self, a, b, total):
        return self.builder.call(self.fma, [a, b, total])

    def low_half(self, lanes):
        return self.builder.bitcast(self.builder.shl(lanes, self.all_lanes(16)), self.register)

    def high_half(self, lanes):
        return self.builder.bitcast(self.builder.and_(lanes, self.all_lanes(0xFFFF0000)), self.register)

    def all_lanes(self, constant):
        return ir.Constant(ir.VectorType(INT32, self.lanes), [constant] * self.lanes)


class _Bfloat(ir.Type):
    """LLVM's type bfloat, which llvmlite does not have."""

    def _to_string(self):
        return "bfloat"

    def __eq__(self, other):
        return isinstance(other, _Bfloat)

    def __hash__(self):
        return hash(_Bfloat)
