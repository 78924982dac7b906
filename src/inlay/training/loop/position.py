"""Position: where a run stands, which batches come next, and what ends it."""

from __future__ import annotations

from collections.abc import Sequence

from inlay.training.loop.batches import shuffled_batches
from inlay.training.loop.options import Options
from inlay.training.loop.results import Counters


class Position:
    """The counters of a run, and everything that follows from them.

    Args:
        options: of the run.
        costs: the number of tokens of every row.
        processes: how many processes train side by side.
    """

    def __init__(self, options: Options, costs: Sequence[int], processes: int):
        self.options = options
        self.costs = costs
        self.processes = processes
        self.counters = Counters()
        self._plan: tuple[int, list[list[list[int]]]] = (-1, [])

    def steps_of_epoch(self) -> list[list[list[int]]]:
        """The steps of this epoch: each is a list of batches of row numbers, for all processes."""
        epoch, o = self.counters.epoch, self.options
        if self._plan[0] != epoch:
            batches = shuffled_batches(
                self.costs, rows=o.rows, tokens=o.tokens, seed=o.seed, epoch=epoch
            )
            size = o.accumulate * self.processes
            self._plan = (epoch, [batches[i : i + size] for i in range(0, len(batches), size)])
        return self._plan[1]

    def advance(self, tokens: int, loss: float) -> None:
        """Count one more step."""
        counters = self.counters
        last = counters.position + 1 == len(self.steps_of_epoch())
        counters.step += 1
        counters.position += 1
        if last:
            counters.epoch, counters.position = counters.epoch + 1, 0
        counters.tokens += tokens
        counters.loss = loss

    def epochs(self, ahead: float = 0) -> float:
        """How many epochs are done `ahead` steps from here."""
        counters = self.counters
        return counters.epoch + (counters.position + ahead) / len(self.steps_of_epoch())

    def planned_epochs(self) -> float | None:
        """How many epochs the run has at most; None where only minutes end it."""
        o, ends = self.options, []
        if o.max_epochs is not None:
            ends.append(o.max_epochs)
        if o.steps is not None:
            ends.append(o.steps / len(self.steps_of_epoch()))
        return min(ends, default=None)

    def progress(self, ahead: float = 0) -> float:
        """How much of the run is done `ahead` steps from here, from 0 to 1, by its first end."""
        counters, o = self.counters, self.options
        shares = [0.0]
        if o.steps is not None:
            shares.append((counters.step + ahead) / o.steps)
        if o.max_epochs is not None:
            shares.append(self.epochs(ahead) / o.max_epochs)
        if o.minutes is not None:
            shares.append(counters.seconds / (60 * o.minutes))
        return min(1.0, max(shares))

    def stop_reason(self) -> str | None:
        """Which option ends the run here; None where it goes on."""
        counters, o = self.counters, self.options
        ends = {
            "patience": o.patience is not None and counters.without_improvement >= o.patience,
            "steps": o.steps is not None and counters.step >= o.steps,
            "minutes": o.minutes is not None and counters.seconds >= 60 * o.minutes,
            "epochs": o.max_epochs is not None and self.epochs() >= o.max_epochs,
        }
        return next((name for name, reached in ends.items() if reached), None)

    def evaluation_is_due(self, at_end: bool) -> bool:
        """Whether to evaluate here; at_end: whether the run ends here."""
        counters, every = self.counters, self.options.eval_every
        if not counters.step:
            return False
        if counters.evaluations and counters.evaluations[-1].step == counters.step:
            return False
        if at_end:
            return True
        return counters.position == 0 if every is None else counters.step % every == 0
