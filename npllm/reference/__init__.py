"""Every operation of the model in NumPy, and the plain network made of them: the book.

`README.md` is its contents page: it says in which order to read. One file per
operation: the equation, the derivation of its gradient, then the code of both.
`transformer.py` and `block.py` are the whole network, forward and backward, and
`python -m npllm.reference` trains it. Everything takes any float dtype: gradients are
proved in float64.

Input gradients are returned; parameter gradients are added to the arrays given. What a
backward needs from its forward travels in a named `cache`. The operations take arrays
and scalars and return arrays: NumPy allocates. Those of `npllm.kernels` have the same
names and arguments and, beside them, an allocator.
"""

from npllm.reference.adam import adam_update
from npllm.reference.add_norm import add_norm_backward, add_norm_forward
from npllm.reference.attention import attention_backward, attention_forward, cached_attention_forward
from npllm.reference.dropout import DropoutKey, dropout_backward, dropout_forward
from npllm.reference.embedding import embedding_backward, embedding_forward
from npllm.reference.gelu import gelu_backward, gelu_forward
from npllm.reference.gradient_norm import gradient_norm, sums_of_squares
from npllm.reference.layernorm import layernorm_backward, layernorm_forward
from npllm.reference.linear import linear_backward, linear_forward
from npllm.reference.lm_head_loss import lm_head_loss_and_grad, lm_head_loss_backward, lm_head_loss_forward
from npllm.reference.lm_head_policy import lm_head_policy_backward, lm_head_policy_forward
from npllm.reference.muon import muon_update
from npllm.reference.qk_norm import qk_norm_backward, qk_norm_forward
from npllm.reference.relu2 import relu2_backward, relu2_forward
from npllm.reference.rmsnorm import rmsnorm_backward, rmsnorm_forward
from npllm.reference.rotary import rotary_backward, rotary_forward, rotary_tables
from npllm.reference.sgd import sgd_update
from npllm.reference.swiglu import swiglu_backward, swiglu_forward

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
