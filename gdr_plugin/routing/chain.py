"""The chain of routers: each is asked only about the prompts that are still undecided, and its answers are checked.

The chain knows nothing of how a router decides. It is the only place where a prompt gets the default domain.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from gdr_plugin.api.errors import ChatError, ConfigError, DataError, DomainError, PluginError, unknown
from gdr_plugin.api.routers import Router, RoutingContext
from gdr_plugin.api.types import Sample

__all__ = ["DEFAULT", "Routed", "RouterChain"]

DEFAULT = "default"
"""The value of `Routed.router` for a prompt that no router decided."""

_Error = DataError | ChatError
"""An error of one sample; every other error is about the configuration, a plugin or the model as a whole."""


@dataclass(frozen=True, slots=True)
class Routed:
    """The domain of one prompt, and the router that chose it."""

    domain: str
    """A configured domain; empty when there is an error."""
    router: str
    """The router that decided (or failed), or `default`."""
    error: str | None = None
    """Why the sample could not be routed; None when it was."""


class RouterChain:
    """Asks routers one after the other.

    Args:
        routers: In the order in which they are asked; may be empty.
        default_domain: The domain of prompts that no router decided.
    """

    def __init__(self, routers: Sequence[Router], default_domain: str) -> None:
        self.routers = tuple(routers)
        self.default_domain = default_domain

    def route(self, samples: Sequence[Sample], context: RoutingContext, *, strict: bool = True) -> list[Routed]:
        """Find the domain of every sample.

        Samples that share prompt and fields (the candidates of one prompt) are routed once.

        Args:
            samples: Any number, also none.
            context: The configured domains and the strong model.
            strict: Whether a sample that cannot be routed raises. Otherwise its entry has an error and an empty domain,
                and all others are routed as if it were not there.

        Returns:
            One entry a sample, in order.

        Raises:
            ConfigError: The default domain is not configured, or a router's options are wrong.
            DataError: With `strict`: a sample cannot be routed; mostly a `DomainError`.
            PluginError: A router's answer is malformed: a wrong number of entries, or something that is not text.
        """
        if self.default_domain not in context.domains:
            raise ConfigError(f"routing.default_domain: {unknown('domain', self.default_domain, context.domains)}")
        groups: dict[Hashable, list[int]] = {}
        for index, sample in enumerate(samples):
            groups.setdefault((sample.prompt, _fields_key(sample)), []).append(index)
        members = list(groups.values())
        decided = self._decide([samples[group[0]] for group in members], context, strict)
        result: list[Routed] = [decided[0]] * len(samples) if samples else []
        for group, routed in zip(members, decided, strict=True):
            for index in group:
                result[index] = routed
        return result

    def _decide(self, samples: Sequence[Sample], context: RoutingContext, strict: bool) -> list[Routed]:
        decided: dict[int, Routed] = {}
        undecided = list(range(len(samples)))
        for router in self.routers:
            if not undecided:
                break
            answers = _ask(router, [samples[index] for index in undecided], context, strict)
            for index, answer in zip(undecided, answers, strict=True):
                if isinstance(answer, str):
                    decided[index] = Routed(answer, router.name)
                elif answer is not None:
                    decided[index] = Routed("", router.name, error=str(answer))
            undecided = [index for index in undecided if index not in decided]
        default = Routed(self.default_domain, DEFAULT)
        return [decided.get(index, default) for index in range(len(samples))]


def _fields_key(sample: Sample) -> Hashable:
    """What equal fields have in common: the values of simple ones with their types, as 1 is no True to a router."""
    values = sample.fields.values()
    if all(value is None or isinstance(value, str | int | float) for value in values):
        return tuple(sample.fields), tuple((type(value), value) for value in values)
    return id(sample.fields)  # safe: the samples keep their fields alive during the call


def _ask(router: Router, samples: Sequence[Sample], context: RoutingContext, strict: bool) -> list[str | _Error | None]:
    """A router's checked answers; without `strict`, an error in the place of each sample that caused one.

    Routers raise for a whole batch, so the batch is halved until the bad samples stand alone.
    """
    try:
        return list(_checked(router, samples, context))
    except (DataError, ChatError) as error:
        if strict:
            raise
        if len(samples) == 1:
            return [error]
    middle = len(samples) // 2
    return _ask(router, samples[:middle], context, strict) + _ask(router, samples[middle:], context, strict)


def _checked(router: Router, samples: Sequence[Sample], context: RoutingContext) -> Sequence[str | None]:
    answers = router.route(samples, context)
    if not isinstance(answers, list) or len(answers) != len(samples):
        got = f"{len(answers)} answers" if isinstance(answers, list) else type(answers).__name__
        raise PluginError(
            f"the router {router.name!r} returned {got} for {len(samples)} samples; it must return a list with one each"
        )
    for answer in answers:
        if answer is not None and not isinstance(answer, str):
            raise PluginError(f"the router {router.name!r} returned {answer!r}; it must return a domain's name or None")
        if answer is not None and answer not in context.domains:
            raise DomainError(f"the router {router.name!r} returned an {unknown('domain', answer, context.domains)}")
    return answers
