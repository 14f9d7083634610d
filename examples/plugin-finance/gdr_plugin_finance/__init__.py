"""Finance for gdr-plugin: the router `finance` and the guidances `finance-advice` and `finance-analysis`."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files

from gdr_plugin import Guidance, hookimpl
from gdr_plugin.api.routers import Router
from gdr_plugin.guidance import load_guidance_file
from gdr_plugin_finance.router import FinanceRouter


@hookimpl
def gdr_register_guidance() -> Iterable[Guidance]:
    return load_guidance_file(files("gdr_plugin_finance") / "guidance.yaml")


@hookimpl
def gdr_register_routers() -> Iterable[Router]:
    return [FinanceRouter()]
