"""`bitnet jobs`: training runs and where they stand."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .. import trainings
from ..amounts import ago
from ..console import FLAGS, Flags, table
from ..failures import Failed, Refused


def jobs(
    folder: Annotated[Path, Parameter(help="A run's folder, or one with runs in it.")] = Path(),
    *,
    stop: bool = False,
    report: bool = False,
    flags: Flags = FLAGS,
) -> None:
    """Training runs and where they stand; a run goes on with bitnet train RUN/config.toml --resume.

    Parameters
    ----------
    stop
        End the run of this folder after its step, saved; it can be resumed.
    report
        Write the page of the run of this folder anew.
    """
    if not folder.is_dir():
        raise Refused(f"{folder}: expected a folder, got {'a file' if folder.exists() else 'nothing'}")
    if stop and report:
        raise Refused("jobs: --stop and --report are different things to do")
    found = trainings.find(folder)
    if stop or report:
        if not found or found[0].path != folder:
            raise Refused(f"{folder}: expected a run's own folder, got one without a config and checkpoints")
        if stop:
            _stop(found[0])
        else:
            trainings.require()
            from bitnet_training import run as running  # noqa: PLC0415

            flags.remark(str(running.report(folder)))
    shown = table("run", "method", "state", "step", "loss", "saved", "", numbers=(3, 4, 5))
    for run in found:
        step = f"{run.step:,} of {run.steps:,}" if run.steps else f"{run.step:,}"
        loss = "" if run.loss is None else f"{run.loss:.4f}"
        state = f"{run.state} ({run.pid})" if run.pid else run.state
        shown.add_row(str(run.path), run.method or "", state, step, loss, str(run.checkpoints), ago(run.changed))
    flags.answer(found, *([shown] if found else ["no runs here"]))


def _stop(run: trainings.Run) -> None:
    if run.state != "running" or run.pid is None:
        raise Failed(f"{run.path}: is not running")
    if run.host != socket.gethostname():
        raise Failed(f"{run.path}: runs on {run.host}, as process {run.pid}")
    try:
        os.kill(run.pid, signal.SIGTERM)
    except (ProcessLookupError, PermissionError) as error:
        raise Failed(f"{run.path}: process {run.pid} cannot be told to stop: {error}") from error
