"""How the configs of rows differ."""

import pytest

from tests.configs import leaves


@pytest.fixture(scope="session")
def differences():
    """``differences(cfg, other)``: {key: value} of what ``other`` has otherwise, without OUTPUT_DIR."""

    def differ(cfg, other):
        others = dict(leaves(other))
        found = {key: value for key, value in leaves(cfg) if value != others.pop(key)}
        assert not others  # both have the same keys
        return {key: value for key, value in found.items() if key != "OUTPUT_DIR"}

    return differ
