"""A plugin with models whose reward follows one instruction: the text of its file."""

from __future__ import annotations

TOLD = '''
"""Models whose reward follows one instruction, so that `gdr tune` finds one that helps."""
import hashlib
import numpy as np
from gdr_plugin import hookimpl
from gdr_plugin.models.fake import FakeChat

class Polite:
    def __init__(self, name):
        self.name = self.identity = name
        self.chat = FakeChat()
    def score(self, spans):
        found = []
        for span in spans:
            context, response = (bytes(i for i in ids if i < 256) for ids in (span.context, span.response))
            value = hashlib.blake2b(response, digest_size=1).digest()[0] / 128
            value += 5 * (b"polite" in context and b"please" in response)
            value *= self.name == "told:strong"
            found.append(np.full(len(span.response), (value - 10) / len(span.response), dtype=np.float32))
        return found
    def describe(self):
        return {}
    def unload(self):
        pass

@hookimpl
def gdr_open_model(spec, limits):
    return Polite(spec.model) if spec.scheme == "told" else None
'''
