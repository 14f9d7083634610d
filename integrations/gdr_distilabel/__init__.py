"""distilabel: `GDRScore`, a step that scores generations with the guided density ratio.

Contract: distilabel 1.5.
"""

from typing import Any

from distilabel.steps import Step, StepInput
from pydantic import PrivateAttr

from gdr_plugin.adapters.backend import Backend, open_backend
from gdr_plugin.api.errors import GDRError
from gdr_plugin.api.types import Sample
from gdr_plugin.data.prompts import parse_prompt
from gdr_plugin.text import one_line

__all__ = ["GDRScore"]


class GDRScore(Step):  # type: ignore[misc]
    """Adds `gdr_reward` and `gdr_reason` to rows with `instruction` and `generation`.

    A generation that cannot be scored has `gdr_reward` None and the reason. A missing server ends the pipeline at its
    start; one that fails later is the reason of its batch: distilabel would fill what a failing step should have made
    with None, and no reason. Where `generation` is a list, so are both. Other columns are fields that routers see
    (`field` reads `domain`). `instruction` may be a list of messages: `input_mappings={"instruction": "messages"}`.

    Attributes:
        remote: Address of a `gdr serve`; default: the environment's GDR_REMOTE.
        config: A gdr.yaml whose models load in the step's process; default: GDR_CONFIG.
    """

    remote: str | None = None
    config: str | None = None
    _backend: Backend = PrivateAttr()

    @property
    def inputs(self) -> list[str]:
        """The columns that it reads."""
        return ["instruction", "generation"]

    @property
    def outputs(self) -> list[str]:
        """The columns that it adds."""
        return ["gdr_reward", "gdr_reason"]

    def load(self) -> None:
        """Open the reward."""
        super().load()
        self._backend = open_backend(self.remote, self.config)
        self._backend.guidances()  # asks the server

    def process(self, inputs: StepInput) -> Any:
        """Score a batch in one request."""
        samples: list[Sample] = []
        places: list[list[int | str]] = []
        for row in inputs:
            generations = row["generation"] if isinstance(row["generation"], list) else [row["generation"]]
            places.append([])
            for generation in generations:
                sample = _sample(row, generation)
                places[-1].append(sample if isinstance(sample, str) else len(samples))
                samples += [] if isinstance(sample, str) else [sample]
        found_scores = self._score(samples)
        for row, own in zip(inputs, places, strict=True):
            found = [(None, place) if isinstance(place, str) else found_scores[place] for place in own]
            several = isinstance(row["generation"], list)
            row["gdr_reward"] = [reward for reward, _ in found] if several else found[0][0]
            row["gdr_reason"] = [reason for _, reason in found] if several else found[0][1]
        yield inputs

    def _score(self, samples: list[Sample]) -> list[tuple[float | None, str | None]]:
        try:
            return [(score.reward, score.reason) for score in self._backend.score(samples)] if samples else []
        except GDRError as error:
            return [(None, one_line(error))] * len(samples)


def _sample(row: dict[str, Any], generation: object) -> Sample | str:
    """The sample, or why there is none."""
    if not isinstance(generation, str):
        return "there is no generation"
    own = ("instruction", "generation", "generations", "distilabel_metadata")
    fields = {name: value for name, value in row.items() if value is not None and name not in own}
    try:
        return Sample(parse_prompt(row["instruction"]), generation, fields=fields)
    except GDRError as error:
        return one_line(error)
