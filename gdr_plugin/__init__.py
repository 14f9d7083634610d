"""A reward without a reward model: the guided log-density ratio of two language models."""

from gdr_plugin.hookspecs import hookimpl
from gdr_plugin.types import Message, Sample, Score

__version__ = "0.1.0"

__all__ = ["Message", "Sample", "Score", "hookimpl"]
