"""How many updates a run makes: a number, or what a time budget has room for.

A schedule must not depend on the clock, or a run could not be repeated. Yet nobody
knows at the start how fast the machine will be in three minutes. So the number of
updates is decided while the run goes on, a few times, from the speed since the decision
before. Each decision is an event of the ledger, with the update from which it counts.
The schedule is a function of the update and of these events: a run that is resumed
continues with the same bits.

Every decision replaces the one before. The learning rate of an update follows from the
number of updates that was known then.

`npllm extend` begins another phase after the last update. It has a budget, a warm-up
and a decay of its own. Its beginning is an event of the ledger, too.

With train.patience a phase may end early. That is an event as well: the schedule of the
updates before it stays the one of the planned length.
"""

from typing import Any, NamedTuple

from npllm.optim import batch_size
from npllm.runs.ledger import Ledger
from npllm.training.config import LoopConfig

DECIDED_AFTER = (0.05, 0.25, 0.5, 0.75, 0.9)  # shares of the time budget


class Phase(NamedTuple):
    """The updates that share a schedule: first, first + 1, ..., end - 1.

    end: as far as it is known; None = not at all.
    """

    first: int
    end: int | None


class RunLength:
    """The number of updates of a run, as far as it is known.

    ledger: None = the config must have train.steps. A ledger's decisions count unless
    the user has set train.steps to another number since.
    """

    def __init__(self, config: LoopConfig, ledger: Ledger | None = None):
        self.batch = config.batch
        self._ledger = ledger
        self._steps = config.train.steps
        # The last phase: its first update, and the seconds before it.
        self._first, self._start, minutes = 0, 0.0, config.train.minutes
        self._early_end: int | None = None  # updates after which the last phase ends before its planned end
        for event in self._events:
            if event["event"] == "extended":
                self._first, self._start, minutes = event["step"], event["seconds"], event["minutes"]
                self._early_end, self._steps = None, config.train.steps
            elif event["event"] == "ended_early" and _still_counts(event, config):
                self._early_end, self._steps = event["step"], event["steps"]  # at its end the run sets train.steps
        self.budget = 60.0 * minutes  # seconds
        # The phase before has set train.steps to its own end.
        self.has_budget = self._steps in (None, self._first, *(event["steps"] for event in self._decided))

    @property
    def _events(self) -> list[dict[str, Any]]:
        """The decisions, and the beginnings and early ends of phases, oldest first."""
        return [] if self._ledger is None else self._ledger.schedule

    @property
    def _decided(self) -> list[dict[str, Any]]:
        """The decisions in the last phase, oldest first."""
        decided = []
        for event in self._events:
            if event["event"] == "extended":
                decided = []
            elif event["event"] == "length":
                decided.append(event)
        return decided

    def phase(self, step: int) -> Phase:
        """Return the phase of an update, as it was known when `step` updates were
        made."""
        first, end = 0, None
        for event in self._events:
            if event["step"] <= step and event["event"] == "extended":
                first, end = event["step"], None
            elif event["step"] <= step and event["event"] == "length":
                end = event["steps"]
        if first == self._first:
            return Phase(first, end if self.has_budget else self._steps)
        return Phase(first, self._planned_end(first) if end is None else end)

    def _planned_end(self, first: int) -> int:
        """Return the end of an earlier phase, whose number of updates was not decided:
        the start of the next phase, or the end that it had before it ended early."""
        end = next(event["step"] for event in self._events if event["event"] == "extended" and event["step"] > first)
        early = [event for event in self._events if event["event"] == "ended_early" and event["step"] == end]
        return max([end, *(event["steps"] or 0 for event in early)])

    @property
    def is_final(self) -> bool:
        """Whether the number of updates will not change any more."""
        return not self.has_budget or self._shares_used(self._last["seconds"]) == len(DECIDED_AFTER)

    def is_over(self, step: int) -> bool:
        """Whether `step` updates are all that the run makes."""
        if self._early_end is not None:
            return step >= self._early_end
        return self.is_final and step >= (self._last["steps"] if self.has_budget else self._steps)

    def decide(self, step: int, seconds: float) -> None:
        """Decide the number of updates anew, if it is time to.

        step: updates made. seconds: that they took.
        """
        if self.has_budget and self._shares_used(seconds) > self._shares_used(self._last["seconds"]):
            self._ledger.decided_length(step, step + self._updates_left(step, seconds), seconds)

    @property
    def ended_early(self) -> bool:
        """Whether the last phase has an early end."""
        return self._early_end is not None

    def evaluations_since(self, best: int, step: int, every: int) -> int:
        """The number of evaluations in the last phase after `best` updates and until
        `step` updates. every: steps between two of them."""
        return step // every - max(best, self._first) // every

    def end_early(self, step: int) -> None:
        """Let the run end with `step` updates."""
        self._ledger.ended_early(step, self._steps)
        self._early_end = step

    @property
    def _last(self) -> dict[str, Any]:
        """The last decision, or the beginning of the phase."""
        return {"step": self._first, "seconds": self._start} if not self._decided else self._decided[-1]

    def _shares_used(self, seconds: float) -> int:
        return sum(seconds - self._start >= share * self.budget for share in DECIDED_AFTER)

    def _updates_left(self, step: int, seconds: float) -> int:
        """Return how many more updates bring the run nearest to the end of the budget,
        at the speed since the last decision. An update's time is proportional to its
        sequences."""
        since = self._last if self._last["step"] < step else {"step": 0, "seconds": 0.0}
        sequences = sum(batch_size(update, self.batch) for update in range(since["step"], step))
        per_sequence = (seconds - since["seconds"]) / sequences
        count, left = 0, self.budget - (seconds - self._start)
        while (takes := per_sequence * batch_size(step + count, self.batch)) <= 2.0 * left:
            count, left = count + 1, left - takes
        return count


def _still_counts(event: dict[str, Any], config: LoopConfig) -> bool:
    """Whether an early end holds: the user has not set train.patience to none, or
    train.steps to another number, since."""
    return config.train.patience is not None and config.train.steps in (event["step"], event["steps"])
