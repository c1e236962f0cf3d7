"""Every random stream of the package, by name. No other file chooses a stream number.

A stream is one argument of the functions of `random.py`. With the same seed and step,
two uses of one stream would draw the same random words, and nothing would reveal it.
Each use therefore has a number of its own, or a range of numbers where it needs
several: `INITIAL_VALUES[3]` is the stream of the fourth parameter, and an index outside
a range is an IndexError. All numbers are below $2^{32}$. None may change, because every
seed would then give other weights.
"""

# Dropout, drawn anew in each step.
EMBEDDING_DROPOUT = 0
BLOCK_DROPOUT = range(1, 1 << 24)  # three of each block: attention weights, attention, MLP

# The model before training.
INITIAL_VALUES = range(1 << 24, 2 << 24)  # one of each parameter, by its place in the forward pass
NEW_TOKEN_ROWS = 7 << 24  # rows of the tokens that extend the vocabulary

# Generation. The step is the number of the token.
GENERATION = 3 << 24
BATCH_GENERATION = (3 << 24) + 1

# Reinforcement learning and preferences.
MINIBATCH_ORDER = 5 << 24  # of a rollout's responses, in each epoch
PREFERENCE_PROMPT_ORDER = 6 << 24
PREFERENCE_SUBSET = 8 << 24  # the pairs that a smaller reward model learns from

# Looking into a trained model.
REPEATED_TOKENS = 9 << 24  # rows that occur twice, to find heads of induction

# The order of the data. 0xDA7A reads "DATA".
WINDOW_GAPS = 0xDA7A0000  # tokens that an epoch leaves out
WINDOW_ORDER = 0xDA7A0001
RECORD_ORDER = 0xDA7A0002
TEST_SPLIT = 0xDA7A0020
TEST_CAP = 0xDA7A0021  # the test records that are kept where there are too many
CLASS_SUBSETS = range(0xDA7A0100, 0xDA7A0100 + (1 << 16))  # one of each class: its labelled records

# Evaluation.
MINIMAL_PAIRS = range(0xE7A10000, 0xE7A10000 + 16)  # one of each phenomenon
