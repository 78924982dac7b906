"""The training loop: steps, evaluations and checkpoints, from the first step or a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, reduce
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.runtime.install import Prepared
from inlay.tasks import Task
from inlay.tasks.rows import have_labels
from inlay.training.loop import checkpoint, rng
from inlay.training.loop.checkpoint import Checkpoint
from inlay.training.loop.evaluation import (
    RowPrediction,
    encode_rows,
    merge_predictions,
    predict_rows,
)
from inlay.training.loop.identity import identity
from inlay.training.loop.log import Log
from inlay.training.loop.options import Options
from inlay.training.loop.position import Position
from inlay.training.loop.progress import ProgressDisplay
from inlay.training.loop.results import Counters, Evaluation, Result
from inlay.training.loop.reuse import Reuse
from inlay.training.loop.schedule import lr_factor
from inlay.training.loop.signals import SignalHandler
from inlay.training.loop.step import Stepper, StepResult
from inlay.training.loop.trainable import Trainable

LOG = "log.jsonl"
CHECKPOINT_EVERY = 100

clock: Callable[[], float] = time.monotonic
"""Seconds; a benchmark that shares its machine counts the processor's instead."""


class TrainingLoop:
    """One training run, from its first step or from a checkpoint to its end.

    Args:
        model: the base.
        trainable: what is trained.
        task: bound to the base.
        data: training examples.
        dev: examples to evaluate on.
        options: of the run.
        folder: of the log and the checkpoint; None keeps neither.
        accelerator: of this process.
        console: where progress is shown.
        prepared: what the inlay was attached with; part of the run's identity.
        start: the digest of the file that the pieces start from; part of the run's identity.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trainable: Trainable,
        task: Task,
        data: Sequence[Example],
        dev: Sequence[Example] | None,
        *,
        options: Options,
        folder: Path | None,
        accelerator: Accelerator,
        console: Console,
        prepared: Prepared | None = None,
        start: str | None = None,
    ):
        self.model = model
        self.trainable = trainable
        self.task = task
        self.options = options
        self.folder = folder
        self.accelerator = accelerator
        self.console = console
        self.prepared = prepared
        self.start = start
        self.dev = dev
        with ProgressDisplay(console) as display:
            self.rows = encode_rows(task, data, "train", display)
            have_labels(self.rows)  # before the first step, not in the middle of the run
            self.dev_rows = [] if dev is None else encode_rows(task, dev, "dev", display)
        self.stepper = Stepper(model, trainable, task, options, accelerator)
        costs = [len(row) for row in self.rows]
        self.position = Position(options, costs, accelerator.num_processes)
        self.reuse = Reuse(
            model,
            options,
            [*self.rows, *self.dev_rows],
            self.position.planned_epochs(),
            folder,
            accelerator,
        )
        self.best_state: dict[str, Tensor] = {}
        self.saved_step = 0
        self.signals = SignalHandler()

    @property
    def counters(self) -> Counters:
        """Where the run stands."""
        return self.position.counters

    def run(self, resume: bool) -> Result:
        """Train to the end; resume: from the folder's checkpoint, where there is one."""
        log_length = self._start(resume)
        with self.reuse.reusing(resume), ExitStack() as stack:
            if self.reuse.note is not None:
                self.console.print(self.reuse.note, highlight=False)
            self.log = Log(self._log_path(), log_length)
            stack.callback(self.log.close)
            stack.callback(self.stepper.drop_gradients)
            for tracker in self.accelerator.trackers:
                stack.callback(tracker.finish)
            display = ProgressDisplay(self.console, self.position.progress())
            self.display = stack.enter_context(display)
            stack.enter_context(self.signals)
            self._clock_start = clock() - self.counters.seconds
            stopped = self._train()
            self.counters.seconds = self._seconds()
            if stopped is not None:
                self._log_reuse()
            self._save()
            if stopped is None:
                self._raise_interrupt()
        if self.best_state:
            self.trainable.load_training_state(self.best_state)
        return self._result(stopped)

    def _log_path(self) -> Path | None:
        if self.folder is None or not self.accelerator.is_main_process:
            return None
        return self.folder / LOG

    # ------------------------------------------------------------------------------- the loop

    def _train(self) -> str | None:
        """Train until something ends the run; returns what, or None for Ctrl-C."""
        every = self.options.checkpoint_every or CHECKPOINT_EVERY
        while not self._stop_requested():
            reason = self.position.stop_reason()
            if self.dev is not None and self.position.evaluation_is_due(reason is not None):
                if not self._evaluate(self.dev):
                    break
                reason = self.position.stop_reason()
            if reason is not None:
                return reason
            if self.counters.step % every == 0 and self.counters.step > self.saved_step:
                self._save()
            self._step()
        return None

    def _stop_requested(self) -> bool:
        """Whether Ctrl-C was pressed. All processes agree on the answer, and on the time."""
        seconds, requested = self._seconds(), self.signals.stop_requested
        if self.accelerator.num_processes > 1:
            both = torch.tensor([seconds, float(requested)], device=self.accelerator.device)
            seconds, share = reduce(both, reduction="mean").tolist()
            requested = share > 0
        self.counters.seconds = seconds
        return requested

    def _seconds(self) -> float:
        """Seconds of this run so far, to the millisecond, over all its parts."""
        return round(clock() - self._clock_start, 3)

    def _step(self) -> None:
        """Make one step, and write its line into the log."""
        counters, world, o = self.counters, self.accelerator.num_processes, self.options
        numbers = self.position.steps_of_epoch()[counters.position]
        batches = [[self.rows[number] for number in batch] for batch in numbers]
        factor = lr_factor(o.schedule, o.warmup, self.position.progress(0.5))
        local = batches[self.accelerator.process_index :: world]
        result = self.stepper(counters.step + 1, local, factor, self.position.progress(1))
        tokens = sum(len(row) for batch in batches for row in batch)
        self.position.advance(tokens, result.loss)
        facts = self._facts(result, factor, tokens)
        self.log.write(step=counters.step, **facts, seconds=self._seconds())
        self.accelerator.log(facts, step=counters.step)
        self.display.step(counters.step, result.loss, tokens, self.position.progress())

    def _facts(self, result: StepResult, factor: float, tokens: int) -> dict[str, Any]:
        """What the log says of a step."""
        rates = self.stepper.learning_rates
        facts: dict[str, Any] = {
            "loss": result.loss,
            "lr": factor * max(rates),
            "tokens": tokens,
            "grad_norm": result.gradient_norm,
        }
        if result.penalty is not None:
            facts["penalty"] = result.penalty
        if len({*rates}) > 1:
            facts |= {f"lr/{group}": factor * rate for group, rate in enumerate(rates)}
        return facts

    def _log_reuse(self) -> None:
        """Write into the log how often the blocks below every piece were skipped."""
        facts, summary = self.reuse.facts(), self.reuse.summary()
        if facts is not None and summary is not None:
            self.log.write(step=self.counters.step, reuse=facts)
            self.display.print(summary)

    def _evaluate(self, dev: Sequence[Example]) -> bool:
        """Score the pieces on `dev`. Returns False where Ctrl-C was pressed meanwhile."""
        counters, o = self.counters, self.options
        results: list[RowPrediction] = []
        world = self.accelerator.num_processes
        counting = self.display.counting("evaluating dev", len(self.dev_rows))
        with evaluating(self.model), counting as advance:
            for part in predict_rows(self.model, self.task, self.dev_rows, o.rows, o.tokens):
                results += part
                advance(len(part) * world)
                if world == 1 and self.signals.stop_requested:
                    return False
        predictions = merge_predictions(self.task, self.dev_rows, results, dev)
        scores = {k: float(v) for k, v in self.task.score(predictions, dev).items()}
        score = scores[self.task.metric]
        evaluation = Evaluation(
            counters.step, self.position.epochs(), self._seconds(), score, scores
        )
        counters.evaluations.append(evaluation)
        settled = self.trainable.settled
        best = counters.best is None or score > counters.evaluations[counters.best].score
        if settled and best:
            counters.best = len(counters.evaluations) - 1
            counters.without_improvement = 0
            if o.keep_best:
                state = self.trainable.training_state()
                self.best_state = {name: tensor.clone() for name, tensor in state.items()}
        elif settled:
            counters.without_improvement += 1
        self.log.write(
            step=counters.step, epoch=evaluation.epoch, scores=scores, seconds=evaluation.seconds
        )
        self.accelerator.log({f"dev/{k}": v for k, v in scores.items()}, step=counters.step)
        mark = "  (best)" if settled and best else ""
        self.display.print(f"step {counters.step}: {self.task.metric} {score:.4f} on dev{mark}")
        return True

    # ------------------------------------------------------------------------------ checkpoints

    def _start(self, resume: bool) -> int:
        """Start anew or from the folder's checkpoint; returns how many bytes of the log to keep."""
        index, world = self.accelerator.process_index, self.accelerator.num_processes
        if world > 1:
            for tensor in self.trainable.training_state().values():
                tensor.copy_(broadcast(tensor))
        rng.seed(self.options.seed + index)
        if self.folder is None:
            return 0
        if self.accelerator.is_main_process:
            checkpoint.clean_up(self.folder, everything=not resume)
        self.accelerator.wait_for_everyone()
        self.identity = identity(
            self.trainable,
            self.task,
            self.options,
            learning_rates=self.stepper.learning_rates,
            weight_decays=self.stepper.weight_decays,
            rows=self.rows,
            dev_rows=self.dev_rows,
            processes=world,
            prepared=self.prepared,
            start=self.start,
        )
        stored = checkpoint.read(self.folder)
        if stored is None:
            return 0
        checkpoint.check_identity(self.folder / checkpoint.NAME, stored.identity, self.identity)
        self.position.counters = Counters.from_json(stored.counters)
        self.trainable.load_training_state(stored.pieces)
        self.best_state = stored.best
        checkpoint.load_optimizer_state(self.stepper.optimizer, stored.optimizer)
        rng.restore(stored.generators[index])
        self.saved_step = self.counters.step
        self.console.print(f"resuming after step {self.counters.step}", highlight=False)
        return stored.log

    def _save(self) -> None:
        """Write the checkpoint, where there is a folder."""
        if self.folder is None:
            return
        generators = [rng.capture()]
        if self.accelerator.num_processes > 1:
            generators = gather_object(generators)
        self.saved_step = self.counters.step
        if self.accelerator.is_main_process:
            state = Checkpoint(
                identity=self.identity,
                counters=asdict(self.counters),
                generators=generators,
                log=self.log.sync(),
                pieces=self.trainable.training_state(),
                best=self.best_state,
                optimizer=checkpoint.optimizer_state(self.stepper.optimizer),
            )
            checkpoint.write(self.folder, state)

    def _raise_interrupt(self) -> NoReturn:
        """Print how to resume, and raise KeyboardInterrupt."""
        if self.folder is None:
            cure = "nothing was kept on disk; give a folder to be able to resume"
        else:
            cure = f"the checkpoint is in {self.folder}; start the same run again to resume"
        message = f"stopped after step {self.counters.step}: {cure}"
        self.display.print(message)
        raise KeyboardInterrupt(message)

    def _result(self, stopped: str) -> Result:
        counters = self.counters
        last = len(counters.evaluations) - 1
        index = counters.best if self.options.keep_best else last
        has_best = index is not None and counters.evaluations
        return Result(
            stopped=stopped,
            steps=counters.step,
            epochs=self.position.epochs(),
            tokens=counters.tokens,
            seconds=counters.seconds,
            loss=counters.loss,
            lr=max(self.stepper.learning_rates),
            evaluations=tuple(counters.evaluations),
            best=counters.evaluations[index] if has_best and index is not None else None,
        )
