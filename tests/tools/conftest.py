"""Commands run in the test process and must leave it as it was."""

import signal

import pytest


@pytest.fixture(autouse=True)
def signal_handlers():
    """Commands that a test calls in this process change them: the next Ctrl-C would end pytest at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
