"""Compilers that optimise a kernel once, as a whole.

Numba makes machine code of every function before it compiles the caller. The caller
holds a copy of that function and optimises it again. For a parallel loop Numba makes
four libraries, each of which holds the one before: the body of the loop, two wrappers,
and the kernel. Here only the kernel is optimised and made into machine code; the
functions that are linked into it stay plain LLVM code. This shortens compiling and
leaves the speed of the kernels as it is.

This file and compiled_cache.py alone use undocumented parts of Numba. A kernel compiled
without them gives the same results.
"""

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering, NativeParforLowering
from numba.parfors.parfor import Parfor

PARTS_OF_A_LOOP = ("__numba_parfor_gufunc", "_GufuncWrapper", "parallelgufuncwrapper")  # in the names of libraries


class _PartLibrary(JITCodeLibrary):
    """A module of LLVM code that is only linked into other modules.

    It must not reach LLVM's execution engine. The engine takes the first definition of
    a function that it meets, so it would call this one, which is not optimised, instead
    of the caller's copy.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerPart(NativeLowering):
    _name = "npllm_lower_part"

    def run_pass(self, state):
        state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        name = [].append  # identifies the function to its callers: any unique built-in method
        state["cr"] = state["cr"]._replace(cfunc=name)
        state.targetctx.insert_user_function(name, state["cr"].fndesc, [state.library])
        return True


@register_pass(mutates_CFG=True, analysis_only=False)
class _LowerParallel(NativeParforLowering):
    _name = "npllm_lower_parallel"

    def run_pass(self, state):
        for block in state.func_ir.blocks.values():
            for loop in block.find_insts(Parfor):
                loop.flags = loop.flags.copy()
                loop.flags.no_compile = True  # nobody calls the body from Python
        codegen = state.targetctx.codegen()
        create = codegen.create_library

        def create_library(name, **options):
            is_part = any(part in name for part in PARTS_OF_A_LOOP)
            return _PartLibrary(codegen, name, **options) if is_part else create(name, **options)

        codegen.create_library = create_library  # one function is compiled at a time: Numba holds a lock
        try:
            return super().run_pass(state)
        finally:
            codegen.create_library = create


class PartCompiler(CompilerBase):
    """Numba's own compiler, for a function that only kernels call."""

    def define_pipelines(self):
        return _pipelines(self, NativeLowering, _LowerPart)


class ParallelCompiler(CompilerBase):
    """Numba's own compiler, for a kernel with a parallel loop."""

    def define_pipelines(self):
        return _pipelines(self, NativeParforLowering, _LowerParallel)


def _pipelines(compiler, lowering, replacement):
    """Return Numba's passes, with the pass `lowering` exchanged for `replacement`."""
    pipeline = DefaultPassBuilder.define_nopython_pipeline(compiler.state)
    pipeline.passes = [
        (replacement if each is lowering else each, description) for each, description in pipeline.passes
    ]
    pipeline.finalize()
    return [pipeline]
