"""`inlay.check(model, handle)`: prove the laws on the user's own model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console, RenderableType
from rich.table import Table
from transformers import PreTrainedModel

from inlay.core.method import Spec
from inlay.errors import LawError
from inlay.handle import Inlay, attached
from inlay.laws import LAWS, BaseBreaks, Broken, Case, NotApplicable
from inlay.laws.case import TOO_LARGE
from inlay.laws.examination import examine


@dataclass(frozen=True)
class Finding:
    """What one law said about a model.

    law: its name. holds: None where it says nothing about this model. error: the largest one that
    it measured, relative. note: what is broken, or why it says nothing. seconds: how long it took.
    of_base: whether it says nothing because the base, with nothing attached, breaks it.
    """

    law: str
    holds: bool | None
    error: float
    note: str
    seconds: float
    of_base: bool = False


@dataclass(frozen=True)
class Report:
    """What all laws said about one inlay on one model. subject: a title that names it."""

    subject: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether no law is broken."""
        return all(finding.holds is not False for finding in self.findings)

    def require(self) -> Report:
        """Itself. Raises LawError with the first broken law."""
        for finding in self.findings:
            if finding.holds is False:
                raise LawError(f"{self.subject}: {finding.law} does not hold: {finding.note}")
        return self

    def __rich__(self) -> RenderableType:
        table = Table(title=self.subject, title_justify="left")
        table.add_column("law")
        table.add_column("holds")
        table.add_column("largest difference", justify="right")
        table.add_column("note", overflow="fold")
        marks = {True: "[green]yes", False: "[bold red]NO", None: "[dim]–"}
        for finding in self.findings:
            error = f"{finding.error:.1e}" if finding.error else "exact"
            error = error if finding.holds else ""
            mark = "[yellow]base" if finding.of_base else marks[finding.holds]
            table.add_row(finding.law, mark, error, finding.note)
        return table

    def __str__(self) -> str:
        console = Console(width=110, no_color=True)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def check(
    model: PreTrainedModel,
    subject: Inlay | Spec,
    *,
    laws: tuple[str, ...] | None = None,
    report: Callable[[str], None] = lambda law: None,
) -> Report:
    """Run the laws on a model with an attached inlay, or with a spec that is not attached.

    The model and the inlay are as they were afterwards. A base in 16 bits is checked as a copy in
    fp32, unless it is too large for that: rounding would hide small mistakes and look like large
    ones. laws: names from `inlay.laws.LAWS`, all of them by default, and from `SLOW_LAWS`. report:
    called with the name of each law before it runs.
    """
    exact = model.dtype not in (torch.bfloat16, torch.float16)
    copied = not exact and model.num_parameters() <= TOO_LARGE
    if copied:
        report("copy to fp32")
        name = subject.name if isinstance(subject, Inlay) else None
        model = copy.deepcopy(model).float()
        subject = subject if name is None else attached(model)[name]
    if isinstance(subject, Inlay):
        case = Case(model, subject.spec, subject.training_state())
        title = f"{subject.name}: {subject.spec!r}"
    else:
        case = Case(model, subject)
        title = repr(subject)
    findings = []
    for law in LAWS if laws is None else laws:
        report(law)
        start = time.perf_counter()
        holds: bool | None = True
        error, note, of_base = 0.0, "", False
        try:
            error = examine(law, case)
        except Broken as broken:
            holds, note = False, str(broken)
        except NotApplicable as reason:
            holds, note, of_base = None, str(reason), isinstance(reason, BaseBreaks)
        findings.append(Finding(law, holds, error, note, time.perf_counter() - start, of_base))
    title += " · on a copy in fp32" if copied else "" if exact else " · in 16 bits"
    return Report(title, tuple(findings))
