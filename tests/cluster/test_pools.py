"""Which pools a run has, and what their actors take."""

from __future__ import annotations

from typing import Any

import pytest

from gdr_plugin.api.errors import ConfigError
from gdr_plugin.cluster.pools import Pool, pools_of
from gdr_plugin.config.load import fingerprint, parse_config
from gdr_plugin.config.schema import Config


def config(strong: Any = "org/strong", weak: Any = "org/weak", **sections: Any) -> Config:
    return parse_config({"strong": strong, "weak": weak, **sections})


def test_two_models_have_a_pool_each_that_grows_and_a_gpu_for_each_actor() -> None:
    assert pools_of(config(), gpus=8) == {
        "strong": Pool("strong", None, gpus=1, cpus=1),
        "weak": Pool("weak", None, gpus=1, cpus=1),
    }
    assert {pool.gpus for pool in pools_of(config(), gpus=0).values()} == {0}


def test_one_base_under_two_adapters_is_one_pool() -> None:
    one_base = config({"model": "org/base", "adapter": "org/a"}, "org/base")
    assert pools_of(one_base, gpus=1) == {"both": Pool("both", None, gpus=1, cpus=1)}
    apart = one_base.model_copy(update={"ray": config(ray={"pools": "separate"}).ray})
    assert list(pools_of(apart, gpus=1)) == ["strong", "weak"]


def test_sizes_are_the_configurations_and_servers_take_no_gpu() -> None:
    section = {"actors": {"strong": 4, "policy": 2}, "gpus": {"policy": 0.5}, "cpus": {"strong": 2}}
    pools = pools_of(config(weak="fake:server", ray=section), gpus=8, policy="hf")
    assert list(pools) == ["policy", "strong", "weak"]
    assert pools == {
        "policy": Pool("policy", 2, gpus=0.5, cpus=1),
        "strong": Pool("strong", 4, gpus=1, cpus=2),
        "weak": Pool("weak", None, gpus=0, cpus=1),
    }


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"ray": {"actors": {"both": 2}}}, "ray.actors: there is no pool 'both' here: this run has strong, weak"),
        ({"ray": {"pools": "shared"}, "load": "sequential"}, "load: sequential"),
    ],
)
def test_what_does_not_fit_together_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pools_of(config(**sections), gpus=0)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"pools": "shared", "gpus": {"weak": 1}}, "no pool 'weak' where `pools` is shared"),
        ({"actors": {"strong": 0}}, "actors"),
        ({"actors": {"stong": 1}}, "actors"),
    ],
)
def test_the_section_is_checked_when_it_is_read(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(ray=section)


def test_pools_do_not_change_what_a_result_is() -> None:
    assert fingerprint(config(ray={"actors": {"strong": 4}})) == fingerprint(config())
