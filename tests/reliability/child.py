"""A process that trains a small run with loss spikes in it, for tests that kill it: `python child.py FOLDER`.

It is the driver of `npllm pretrain` and `npllm resume`, without the seconds that preparation and report would take.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reliability.small_training import CONFIG, Poison, fifty_fold, train_on, with_training  # noqa: E402

from npllm.errors import NpllmError  # noqa: E402
from npllm.training import train  # noqa: E402
from npllm.training.run_folder import RunFolder  # noqa: E402

LONG = with_training(CONFIG, steps=400, checkpoint_every=10, eval_every=10)
BAD = (300, 305, 1100, 1900)


def main(folder: str) -> int:
    train.matmul_peak = lambda dtype: 1e9
    try:
        train_on(RunFolder(Path(folder)), LONG, Poison(LONG, BAD, fifty_fold))
    except NpllmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
