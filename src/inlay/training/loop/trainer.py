"""The loop: steps, evaluations and checkpoints, from the first step or from a checkpoint."""

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
from inlay.training.loop import checkpoint, rng, schedule
from inlay.training.loop.batches import shuffled
from inlay.training.loop.checkpoint import Checkpoint
from inlay.training.loop.evaluation import encoded, merged, predictions
from inlay.training.loop.identity import identity
from inlay.training.loop.log import Log
from inlay.training.loop.options import Options
from inlay.training.loop.progress import Shown
from inlay.training.loop.results import Counters, Evaluation, Result
from inlay.training.loop.signals import Interrupts
from inlay.training.loop.step import Stepper
from inlay.training.loop.trainable import Trainable

LOG = "log.jsonl"
CHECKPOINT_EVERY = 100

clock: Callable[[], float] = time.monotonic
"""Seconds; a benchmark that shares its machine counts the processor's instead."""


class Loop:
    """One training run, from its first step or from a checkpoint to its end."""

    def __init__(
        self,
        model: PreTrainedModel,
        handle: Trainable,
        task: Task,
        data: Sequence[Example],
        dev: Sequence[Example] | None,
        chosen: Options,
        folder: Path | None,
        accelerator: Accelerator,
        console: Console,
        prepared: Prepared | None = None,
    ):
        self.prepared = prepared
        self.model, self.handle, self.task = model, handle, task
        self.options, self.folder, self.accelerator = chosen, folder, accelerator
        self.console = console
        self.dev = dev
        with Shown(console) as shown:
            self.rows = encoded(task, data, "train", shown)
            self.dev_rows = [] if dev is None else encoded(task, dev, "dev", shown)
        self.costs = [len(row) for row in self.rows]
        self.stepper = Stepper(model, handle, task, chosen, accelerator)
        self.rates = self.stepper.learning_rates
        self.at = Counters()
        self.best: dict[str, Tensor] = {}
        self.saved = 0
        self.interrupts = Interrupts()
        self._planned: tuple[int, list[list[list[int]]]] = (-1, [])

    def __call__(self, resume: bool) -> Result:
        """Run to the end."""
        length = self._start(resume)
        main = self.accelerator.is_main_process
        with ExitStack() as stack:
            path = self.folder / LOG if self.folder is not None and main else None
            self.log = Log(path, length)
            stack.callback(self.log.close)
            stack.callback(self.stepper.drop_gradients)
            for tracker in self.accelerator.trackers:
                stack.callback(tracker.finish)
            self.shown = stack.enter_context(Shown(self.console, self._done(0)))
            stack.enter_context(self.interrupts)
            self._begun = clock() - self.at.seconds
            stopped = self._loop()
            self.at.seconds = self._clock()
            self._save()
            if stopped is None:
                self._stop()
        if self.best:
            self.handle.load_training_state(self.best)
        return self._result(stopped)

    # ------------------------------------------------------------------------------- the loop

    def _loop(self) -> str | None:
        """Train until something ends the run; returns what, or None for Ctrl-C."""
        every = self.options.checkpoint_every or CHECKPOINT_EVERY
        while not self._interrupt():
            over = self._over()
            if self._due(over is not None):
                if not self._evaluate():
                    break
                over = self._over()
            if over is not None:
                return over
            if self.at.step % every == 0 and self.at.step > self.saved:
                self._save()
            self._train()
        return None

    def _interrupt(self) -> bool:
        """Whether to stop here. All processes come to the same answer, and to the same time."""
        seconds, asked = self._clock(), self.interrupts.noted
        if self.accelerator.num_processes > 1:
            both = torch.tensor([seconds, float(asked)], device=self.accelerator.device)
            seconds, noted = reduce(both, reduction="mean").tolist()
            asked = noted > 0
        self.at.seconds = seconds
        return asked

    def _clock(self) -> float:
        """Seconds of this run so far, to the millisecond, in all its parts."""
        return round(clock() - self._begun, 3)

    def _over(self) -> str | None:
        """What ends the run here, if anything does."""
        at, o = self.at, self.options
        ends = {
            "patience": o.patience is not None and at.waited >= o.patience,
            "steps": o.steps is not None and at.step >= o.steps,
            "minutes": o.minutes is not None and at.seconds >= 60 * o.minutes,
            "epochs": o.passes is not None and self._epochs(0) >= o.passes,
        }
        return next((name for name, ends_it in ends.items() if ends_it), None)

    def _due(self, over: bool) -> bool:
        at, every = self.at, self.options.eval_every
        if self.dev is None or not at.step:
            return False
        if at.evaluations and at.evaluations[-1].step == at.step:
            return False
        return over or (at.position == 0 if every is None else at.step % every == 0)

    def _train(self) -> None:
        """One step, and its line in the log."""
        at, world = self.at, self.accelerator.num_processes
        steps = self._steps()
        group = [[self.rows[number] for number in batch] for batch in steps[at.position]]
        o = self.options
        share = schedule.factor(o.schedule, o.warmup, self._done(0.5))
        batches = group[self.accelerator.process_index :: world]
        result = self.stepper(at.step + 1, batches, share, self._done(1))
        tokens = sum(len(row) for batch in group for row in batch)
        at.step += 1
        at.position += 1
        if at.position == len(steps):
            at.epoch, at.position = at.epoch + 1, 0
        at.tokens += tokens
        at.loss = result.loss
        facts: dict[str, Any] = {
            "loss": result.loss,
            "lr": share * max(self.rates),
            "tokens": tokens,
            "grad_norm": result.gradient_norm,
        }
        if result.penalty is not None:
            facts["penalty"] = result.penalty
        if len({*self.rates}) > 1:
            facts |= {f"lr/{i}": share * rate for i, rate in enumerate(self.rates)}
        self.log.write(step=at.step, **facts, seconds=self._clock())
        self.accelerator.log(facts, step=at.step)
        self.shown.step(at.step, result.loss, tokens, self._done(0))

    def _evaluate(self) -> bool:
        """Score the pieces on `dev`. False where Ctrl-C came in between."""
        at, o, found = self.at, self.options, []
        world = self.accelerator.num_processes
        assert self.dev is not None
        showing = self.shown.counting("evaluating dev", len(self.dev_rows))
        with evaluating(self.model), showing as advance:
            for part in predictions(self.model, self.task, self.dev_rows, o.rows, o.tokens):
                found += part
                advance(len(part) * world)
                if world == 1 and self.interrupts.noted:
                    return False
        said = merged(self.task, self.dev_rows, found, self.dev)
        scores = {k: float(v) for k, v in self.task.score(said, self.dev).items()}
        score = scores[self.task.metric]
        seen = Evaluation(at.step, self._epochs(0), self._clock(), score, scores)
        at.evaluations.append(seen)
        if at.best is None or score > at.evaluations[at.best].score:
            at.best, at.waited = len(at.evaluations) - 1, 0
            if o.keep_best:
                self.best = {k: t.clone() for k, t in self.handle.training_state().items()}
        else:
            at.waited += 1
        self.log.write(step=at.step, epoch=seen.epoch, scores=scores, seconds=seen.seconds)
        self.accelerator.log({f"dev/{k}": v for k, v in scores.items()}, step=at.step)
        mark = "  (best)" if at.waited == 0 else ""
        self.shown.say(f"step {at.step}: {self.task.metric} {score:.4f} on dev{mark}")
        return True

    # ------------------------------------------------------------------------------ checkpoints

    def _start(self, resume: bool) -> int:
        """Get ready: anew, or from the folder's checkpoint. Returns how much of the log counts."""
        me, world = self.accelerator.process_index, self.accelerator.num_processes
        if world > 1:
            for tensor in self.handle.training_state().values():
                tensor.copy_(broadcast(tensor))
        rng.seed(self.options.seed + me)
        if self.folder is None:
            return 0
        if self.accelerator.is_main_process:
            checkpoint.sweep(self.folder, everything=not resume)
        self.accelerator.wait_for_everyone()
        self.identity = identity(
            self.handle,
            self.task,
            self.options,
            learning_rates=self.rates,
            weight_decays=self.stepper.weight_decays,
            rows=self.rows,
            dev_rows=self.dev_rows,
            processes=world,
            prepared=self.prepared,
        )
        found = checkpoint.read(self.folder)
        if found is None:
            return 0
        checkpoint.compare(self.folder / checkpoint.NAME, found.identity, self.identity)
        self.at = Counters.from_json(found.counters)
        self.handle.load_training_state(found.pieces)
        self.best = found.best
        checkpoint.load_optimizer_state(self.stepper.optimizer, found.optimizer)
        rng.restore(found.generators[me])
        self.saved = self.at.step
        self.console.print(f"going on after step {self.at.step}", highlight=False)
        return found.log

    def _save(self) -> None:
        """Write the checkpoint, where there is a folder."""
        if self.folder is None:
            return
        generators = [rng.capture()]
        if self.accelerator.num_processes > 1:
            generators = gather_object(generators)
        self.saved = self.at.step
        if self.accelerator.is_main_process:
            made = Checkpoint(
                identity=self.identity,
                counters=asdict(self.at),
                generators=generators,
                log=self.log.sync(),
                pieces=self.handle.training_state(),
                best=self.best,
                optimizer=checkpoint.optimizer_state(self.stepper.optimizer),
            )
            checkpoint.write(self.folder, made)

    def _stop(self) -> NoReturn:
        """Say how to go on, and hand Ctrl-C on."""
        if self.folder is None:
            how = "nothing was kept on disk; give a folder to be able to go on"
        else:
            how = f"the checkpoint is in {self.folder}; start the same run again to go on"
        said = f"stopped after step {self.at.step}: {how}"
        self.shown.say(said)
        raise KeyboardInterrupt(said)

    # ------------------------------------------------------------------------- where it stands

    def _steps(self) -> list[list[list[int]]]:
        """The steps of this epoch: each is a list of batches, over all processes."""
        epoch, o = self.at.epoch, self.options
        if self._planned[0] != epoch:
            batches = shuffled(self.costs, rows=o.rows, tokens=o.tokens, seed=o.seed, epoch=epoch)
            size = o.accumulate * self.accelerator.num_processes
            groups = [batches[i : i + size] for i in range(0, len(batches), size)]
            self._planned = (epoch, groups)
        return self._planned[1]

    def _epochs(self, ahead: float) -> float:
        return self.at.epoch + (self.at.position + ahead) / len(self._steps())

    def _done(self, ahead: float) -> float:
        """The share of the run that is over `ahead` steps from here, by what ends it first."""
        o = self.options
        shares = [0.0]
        if o.steps is not None:
            shares.append((self.at.step + ahead) / o.steps)
        if o.passes is not None:
            shares.append(self._epochs(ahead) / o.passes)
        if o.minutes is not None:
            shares.append(self.at.seconds / (60 * o.minutes))
        return min(1.0, max(shares))

    def _result(self, stopped: str) -> Result:
        at = self.at
        chosen = at.best if self.options.keep_best else len(at.evaluations) - 1
        return Result(
            stopped=stopped,
            steps=at.step,
            epochs=self._epochs(0),
            tokens=at.tokens,
            seconds=at.seconds,
            loss=at.loss,
            lr=max(self.rates),
            evaluations=tuple(at.evaluations),
            best=at.evaluations[chosen] if chosen is not None and at.evaluations else None,
        )
