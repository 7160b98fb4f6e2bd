"""Names of a config that a registry has, and those that it has not."""

import pytest
from fvcore.common.registry import Registry

from clim.errors import UserError
from clim.registries import registered


def test_what_is_there_and_what_is_not():
    registry = Registry("THING")
    registry._do_register("Two", 2)
    registry._do_register("One", 1)
    assert registered(registry, "One", key="A.KEY") == 1
    with pytest.raises(UserError) as caught:
        registered(registry, "Three", key="A.KEY", otherwise=', or ""')
    assert str(caught.value) == "A.KEY 'Three' is unknown: choose one of One, Two, or \"\"."
