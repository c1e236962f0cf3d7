"""Every operation of the model in Numba: the engine.

Functions, names, signatures and file names are those of `npllm.reference`, which
explains the mathematics. The files here show how the work is cut: into chunks that stay
in the cache, into loops that the compiler vectorises, and into pieces that threads can
take in any order. `jit` holds the compiler's settings and `chunks` the sizes of the
pieces. Several operations share `vector_math`, `random`, `gemm`, `norm_rows`,
`attention_tiles` and `logit_chunks`.

Arrays are C-contiguous; other arrays are copied, or read more slowly. All arrays of a
call have one dtype, float32 or float64; the weights of float32 operations may be
`bfloat16`. Every result, cache and scratch array comes from the allocator `empty`. Its
earlier content never shows in a result. Only `gemm` keeps memory of its own: the blocks
that it packs.

`python -m benchmarks kernels` times every operation against NumPy's reference;
README.md has the table.
"""

from npllm.kernels.adam import adam_update
from npllm.kernels.add_norm import add_norm_backward, add_norm_forward
from npllm.kernels.attention import attention_backward, attention_forward
from npllm.kernels.cached_attention import cached_attention_forward
from npllm.kernels.dropout import dropout_backward, dropout_forward
from npllm.kernels.embedding import embedding_backward, embedding_forward
from npllm.kernels.gelu import gelu_backward, gelu_forward
from npllm.kernels.gradient_norm import gradient_norm, sums_of_squares
from npllm.kernels.layernorm import layernorm_backward, layernorm_forward
from npllm.kernels.linear import linear_backward, linear_forward
from npllm.kernels.lm_head_loss import lm_head_loss_and_grad, lm_head_loss_backward, lm_head_loss_forward
from npllm.kernels.lm_head_policy import lm_head_policy_backward, lm_head_policy_forward
from npllm.kernels.muon import muon_update
from npllm.kernels.qk_norm import qk_norm_backward, qk_norm_forward
from npllm.kernels.relu2 import relu2_backward, relu2_forward
from npllm.kernels.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npllm.kernels.rotary import rotary_backward, rotary_forward
from npllm.kernels.sgd import sgd_update
from npllm.kernels.swiglu import swiglu_backward, swiglu_forward
from npllm.reference.dropout import DropoutKey
from npllm.reference.rotary import rotary_tables

__all__ = [
    "DropoutKey",
    "adam_update",
    "add_norm_backward",
    "add_norm_forward",
    "attention_backward",
    "attention_forward",
    "cached_attention_forward",
    "dropout_backward",
    "dropout_forward",
    "embedding_backward",
    "embedding_forward",
    "gelu_backward",
    "gelu_forward",
    "gradient_norm",
    "layernorm_backward",
    "layernorm_forward",
    "linear_backward",
    "linear_forward",
    "lm_head_loss_and_grad",
    "lm_head_loss_backward",
    "lm_head_loss_forward",
    "lm_head_policy_backward",
    "lm_head_policy_forward",
    "muon_update",
    "qk_norm_backward",
    "qk_norm_forward",
    "relu2_backward",
    "relu2_forward",
    "rmsnorm_backward",
    "rmsnorm_forward",
    "rotary_backward",
    "rotary_forward",
    "rotary_tables",
    "sgd_update",
    "sums_of_squares",
    "swiglu_backward",
    "swiglu_forward",
]
