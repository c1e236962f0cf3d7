"""Read mutated checkpoints, shards and tokenizers; an untyped error is a finding.

    python tools/fuzz.py --minutes 10 [--seed N]

When there is a finding, the exit code is 1 and the file is saved in the current folder.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "reliability")]

from fuzzing import run_fuzzer  # noqa: E402

ROUND = 60.0  # seconds; each round is a new process with the next seed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round")
    options = parser.parse_args()
    end, seed, mutations, refused = time.monotonic() + 60 * options.minutes, options.seed, 0, 0
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory() as folder:
            report = run_fuzzer(Path(folder), seed, seconds=min(ROUND, left))
            if report.failure:
                print(report.failure)
                if report.file:
                    print("saved:", shutil.copy(report.file, f"fuzz-failure-seed{seed}-{report.file.name}"))
                return 1
        mutations, refused, seed = mutations + report.mutations, refused + report.refused, seed + 1
        print(f"{mutations} mutations, {refused} refused, seeds {options.seed} to {seed - 1}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
