"""From the names in a configuration to the things that plugins and guidance files register.

Opens no model. Own guidance files win over plugins: a user's file may replace a guidance of the library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gdr_plugin.api.errors import ConfigError, unknown
from gdr_plugin.config.schema import Config, RouterEntry
from gdr_plugin.plugins.registry import NO_GUIDANCE_NAME, Plugins
from gdr_plugin.text import one_line

if TYPE_CHECKING:
    from gdr_plugin.api.guidance import Guidance
    from gdr_plugin.api.routers import Router


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a configuration's names stand for."""

    guidances: dict[str, Guidance | None]
    """Domain -> its guidance, None for `none`; in the configuration's order."""
    routers: list[Router]
    """The chain, with the options that the configuration gives."""


def resolve_names(config: Config, plugins: Plugins, *, origin: str = "configuration") -> Resolved:
    """Look up the guidances and routers that a configuration names.

    Args:
        config: The configuration, its paths absolute.
        plugins: Where names are looked up.
        origin: What error messages call the configuration.

    Returns:
        The guidance of every domain and the routers of the chain.

    Raises:
        ConfigError: Names are not known (all of them in one line, each with the nearest), a router refuses its options
            or the domains, or a guidance file is wrong.
        PluginError: A plugin cannot say what it registers.
    """
    known = {**plugins.guidances(), **_own_guidances(config)}
    complaints: list[str] = []
    guidances: dict[str, Guidance | None] = {}
    for domain, name in config.guidance.domains.items():
        if name != NO_GUIDANCE_NAME and name not in known:
            complaints.append(f"guidance.domains.{domain}: {unknown('guidance', name, [*known, NO_GUIDANCE_NAME])}")
        guidances[domain] = known.get(name)
    registered = plugins.routers()
    for index, entry in enumerate(config.routing.routers):
        if entry.name not in registered:
            complaints.append(f"routing.routers[{index}]: {unknown('router', entry.name, registered)}")
    if complaints:
        raise ConfigError(f"{origin}: {'; '.join(complaints)}")
    routers = [_router(entry, registered[entry.name]) for entry in config.routing.routers]
    for router in routers:
        if (check := getattr(router, "check", None)) is not None:
            check(tuple(guidances))
    return Resolved(guidances, routers)


def _own_guidances(config: Config) -> dict[str, Guidance]:
    from gdr_plugin.guidance import load_guidance_file

    own: dict[str, Guidance] = {}
    files: dict[str, str] = {}
    for file in config.guidance.files:
        for guidance in load_guidance_file(file):
            if guidance.name in own:
                both = f"{files[guidance.name]} and {file}"
                raise ConfigError(f"guidance.files: the guidance {guidance.name!r} is in {both}: rename one")
            own[guidance.name] = guidance
            files[guidance.name] = file
    return own


def _router(entry: RouterEntry, router: Router) -> Router:
    """A router with the options that its entry gives."""
    from gdr_plugin.api.routers import options_error

    options = entry.model_extra or {}
    if not options:
        return router
    configure = getattr(router, "with_options", None)
    if configure is None:
        raise ConfigError(options_error(entry.name, options, ()))
    try:
        configured: Router = configure(**options)
    except TypeError as error:  # a plugin that does not check its options itself
        raise ConfigError(
            f"routing.routers: the router {entry.name!r} refuses its options: {one_line(error)}"
        ) from error
    return configured
