"""Items through stages: order, errors as values, and what Ray's engine says without a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gdr_plugin.api.errors import DataError, GDRError, MissingDependencyError
from gdr_plugin.cluster.engine import Failure, InProcess, Stage
from gdr_plugin.cluster.on_ray import RayEngine
from gdr_plugin.cluster.pools import Pool

POOL = Pool("both", 1, 0, 0)


class OwnError(DataError):
    """An error as a plugin may define one."""


@dataclass(frozen=True)
class Adding:
    amount: int

    def __call__(self) -> Callable[[int], int]:
        def add(item: int) -> int:
            if item == 13:
                raise OwnError("thirteen is not added to")
            return item + self.amount

        return add


def seven() -> int:
    return 7


def ten_times(number: int) -> int:
    return 10 * number


def test_items_pass_all_stages_in_order() -> None:
    stages = [Stage(POOL, Adding(1)), Stage(POOL, Adding(2))]
    with InProcess() as engine:
        assert list(engine.run(stages, ten_times, [4, 2])) == [(4, 43), (2, 23)]
        assert engine.once(POOL, seven) == 7


def test_an_error_of_a_stage_reaches_the_caller_as_ours() -> None:
    stages = [Stage(POOL, Adding(3)), Stage(POOL, Adding(1))]
    with InProcess() as engine, pytest.raises(DataError, match="thirteen") as caught:
        list(engine.run(stages, ten_times, [0, 1]))
    assert type(caught.value) is DataError


def test_every_error_of_ours_travels() -> None:
    error = MissingDependencyError("peft", "adapters", "for adapters")
    sent = Failure.of(error).error()
    assert type(sent) is MissingDependencyError
    assert str(sent) == str(error)
    assert type(Failure.of(GDRError("x")).error()) is GDRError


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gdr-plugin\[ray\]'"), RayEngine():
        pass
