"""Compiles functions that only other kernels call, and leaves their optimisation and their machine code to those.

Numba makes machine code of every function before it compiles the caller, which holds a copy of it and goes through the
same once more. Without the first of the two, kernels compile much faster and run no slower. This is the one
place that uses what Numba does not document; a kernel compiled without it gives the same results.
"""

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering


class _PartLibrary(JITCodeLibrary):
    """A module of LLVM's code that is only linked into others.

    It must not reach the execution engine: that takes the first definition of a function that it meets, and would call
    this one, which is not optimised, instead of the caller's copy.
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
        name = [].append  # what callers know the function by: any built-in method that exists only once
        state["cr"] = state["cr"]._replace(cfunc=name)
        state.targetctx.insert_user_function(name, state["cr"].fndesc, [state.library])
        return True


class PartCompiler(CompilerBase):
    """Numba's own compiler but for the last pass."""

    def define_pipelines(self):
        pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
        pipeline.passes = [
            (_LowerPart if each is NativeLowering else each, description) for each, description in pipeline.passes
        ]
        pipeline.finalize()
        return [pipeline]
