"""`python -m npllm.reference`: train the plain network on a few lines of text."""

import os
import sys

import numpy as np

from npllm.reference.lesson import (
    CHECKED,
    STEPS,
    TEXT,
    Characters,
    gradient_errors,
    small_network,
    train,
    write,
)
from npllm.reference.weights import initial_weights


def main() -> None:
    """Print the tokens, the falling loss, the error of each gradient, and a sample."""
    rng = np.random.default_rng(0)
    tokenizer = Characters(TEXT)
    tokens = tokenizer.encode(TEXT)
    config = small_network(len(tokenizer.vocabulary))
    p = initial_weights(config, seed=0)
    count = sum(array.size for array in p.values())

    print(f"The text has {len(tokens)} characters, {config.vocab_size} of them different.")
    print(f"It starts with {TEXT[:16]!r}, which are the tokens {tokens[:16].tolist()}.")
    print(f"\nThe network has {count:,} parameters. The loss of a blind guess is")
    print(f"log {config.vocab_size} = {np.log(config.vocab_size):.3f} nats a character.\n")
    for step, loss in enumerate(train(config, p, tokens, STEPS, rng), start=1):
        if step == 1 or step % 50 == 0:
            print(f"update {step:>3}   loss {loss:.3f}")

    print("\nEach gradient against central differences of the loss, in float64,")
    print(f"at {CHECKED} random entries of each parameter: the largest relative error.\n")
    for name, error in gradient_errors(config, p, tokens, rng):
        print(f"{name:<32} {'x'.join(map(str, p[name].shape)):>8}   {error:.1e}")

    start = "The "
    print(f"\nThe network writes on from {start!r}:\n")
    print(tokenizer.decode(write(config, p, tokenizer.encode(start), 240, rng)))


if __name__ == "__main__":
    try:
        main()
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest, which Python flushes
        if isinstance(error, BrokenPipeError):  # the reader, such as `head`, has left
            sys.exit(141)
        print(f"The lesson cannot be printed ({error.strerror}); print it to another place.", file=sys.stderr)
        sys.exit(5)
