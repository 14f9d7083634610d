"""Guidance: text that says what a good answer is in a domain, read from files and put into a prompt's system turn."""

from gdr_plugin.api.guidance import NO_GUIDANCE, Exemplar, Guidance, RenderedGuidance
from gdr_plugin.guidance.load import library, load_guidance_file
from gdr_plugin.guidance.render import apply, render

__all__ = [
    "NO_GUIDANCE",
    "Exemplar",
    "Guidance",
    "RenderedGuidance",
    "apply",
    "library",
    "load_guidance_file",
    "render",
]
