"""A report as a run of an experiment tracker: Weights & Biases, or Trackio, which has the same interface.

Knows what is logged; how it is shown is the tracker's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from gdr_plugin.api.errors import ConfigError, OutputError
from gdr_plugin.evaluation.summary import Report
from gdr_plugin.text import first_line

__all__ = ["Tracker", "check_tracker", "log", "numbers"]

Tracker = Literal["none", "wandb", "trackio"]

_PROJECT = "gdr-evaluate"


def check_tracker(tracker: Tracker) -> None:
    """Refuse a tracker that is not installed, before anything is scored.

    Raises:
        ConfigError: It is not installed.
    """
    if tracker != "none" and find_spec(tracker) is None:
        raise ConfigError(f"--report-to {tracker} needs the package {tracker}: pip install {tracker}")


def log(report: Report, origin: Mapping[str, str], tracker: Tracker) -> None:
    """Log a report as one run, with where it comes from as its configuration.

    Args:
        report: The numbers.
        origin: Where they come from.
        tracker: `wandb` or `trackio`; its project is WANDB_PROJECT's for the first, else `gdr-evaluate`.

    Raises:
        OutputError: The tracker failed.
    """
    project = os.environ.get("WANDB_PROJECT") if tracker == "wandb" else None
    try:
        run = import_module(tracker).init(project=project or _PROJECT, config=dict(origin))
        run.log(numbers(report))
        run.finish()
    except Exception as error:  # whatever a network, an account or a full disk make it raise
        raise OutputError(f"--report-to {tracker}: {first_line(error)}; the files are written") from error


def numbers(report: Report) -> dict[str, float]:
    """What is logged: accuracies of the configured reduction by part, those of the baselines, and counts."""
    main = report.main
    parts: dict[str, Any] = {
        "accuracy": main.overall.accuracy,
        **{f"subset/{name}": part.accuracy for name, part in main.subsets.items()},
        **{f"domain/{name}": part.accuracy for name, part in main.domains.items()},
        **{f"section/{section.name}": section.estimate for section in main.sections if section.partial is None},
        **{f"section/{own.name} (partial)": own.estimate for own in main.sections if own.partial is not None},
        **{f"baseline/{own.name}, {own.reduction}": own.overall.accuracy for own in report.baselines},
    }
    found = {name: estimate.value for name, estimate in parts.items() if estimate is not None}
    return {**found, "items": len(report.scores), "scored": main.overall.scored, "ties": main.overall.ties}
