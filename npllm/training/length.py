"""How many updates a run makes: a number, or what a time budget has room for.

A schedule must not depend on the clock, or a run could not be repeated. Yet nobody
knows at the start how fast the machine will be in three minutes. So the number of
updates is decided while the run goes on, a few times, from the speed since the decision
before. Each decision is an event of the ledger, with the update from which it counts.
The schedule is a function of the update and of these events: a run that is resumed
continues with the same bits.

Every decision replaces the one before. The learning rate of an update follows from the
number of updates that was known then.
"""

from typing import Any

from npllm.optim import batch_size
from npllm.runs.ledger import Ledger
from npllm.training.config import LoopConfig

DECIDED_AFTER = (0.05, 0.25, 0.5, 0.75, 0.9)  # shares of the time budget


class RunLength:
    """The number of updates of a run, as far as it is known.

    ledger: None = the config must have train.steps. A ledger's decisions count unless
    the user has set train.steps to another number since.
    """

    def __init__(self, config: LoopConfig, ledger: Ledger | None = None):
        steps = config.train.steps
        self.batch = config.batch
        self.budget = 60.0 * config.train.minutes
        decided = [] if ledger is None else ledger.lengths[-1:]
        self.has_budget = steps is None or any(event["steps"] == steps for event in decided)
        self._ledger = ledger
        self._fixed = [{"step": 0, "steps": steps, "seconds": 0.0}]

    @property
    def _decided(self) -> list[dict[str, Any]]:
        return self._ledger.lengths if self.has_budget else self._fixed

    def known_at(self, step: int) -> int | None:
        """The number of updates that was known when `step` updates were made. None =
        nothing was known yet."""
        known = [event["steps"] for event in self._decided if event["step"] <= step]
        return known[-1] if known else None

    @property
    def is_final(self) -> bool:
        """Whether the number of updates will not change any more."""
        return not self.has_budget or self._shares_used(self._last["seconds"]) == len(DECIDED_AFTER)

    def is_over(self, step: int) -> bool:
        """Whether `step` updates are all that the run makes."""
        return self.is_final and step >= self._decided[-1]["steps"]

    def decide(self, step: int, seconds: float) -> None:
        """Decide the number of updates anew, if it is time to.

        step: updates made. seconds: that they took.
        """
        if self.has_budget and self._shares_used(seconds) > self._shares_used(self._last["seconds"]):
            self._ledger.decided_length(step, step + self._updates_left(step, seconds), seconds)

    @property
    def _last(self) -> dict[str, Any]:
        return self._decided[-1] if self._decided else {"step": 0, "seconds": 0.0}

    def _shares_used(self, seconds: float) -> int:
        return sum(seconds >= share * self.budget for share in DECIDED_AFTER)

    def _updates_left(self, step: int, seconds: float) -> int:
        """How many more updates bring the run nearest to the end of the budget, at the
        speed since the last decision. An update's time is proportional to its
        sequences."""
        since = self._last if self._last["step"] < step else {"step": 0, "seconds": 0.0}
        sequences = sum(batch_size(update, self.batch) for update in range(since["step"], step))
        per_sequence = (seconds - since["seconds"]) / sequences
        count, left = 0, self.budget - seconds
        while (takes := per_sequence * batch_size(step + count, self.batch)) <= 2.0 * left:
            count, left = count + 1, left - takes
        return count
