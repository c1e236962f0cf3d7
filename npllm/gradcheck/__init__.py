"""`python -m npllm.gradcheck FILE:FUNCTION`: checks a forward and backward of your own.

The file has two functions, NAME_forward and NAME_backward, as those of
`npllm.reference` are. `pair` loads them, `arguments` makes their inputs, `calls` calls
both, `check` compares every gradient with central differences in float64, as the tests
of this package do, and `guess` says what kind of mistake a wrong gradient shows.
"""
