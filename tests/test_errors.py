"""A user's mistake ends in one sentence and exit code 2, whichever process raises it."""

import traceback

import pytest
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.multiprocessing import ProcessRaisedException

from clim.errors import UserError, raise_on_all_ranks, registered, run_cleanly, sentence

SPAWNED = "\n\n-- Process 1 terminated with the following error:\n"


def mistake():
    try:
        {}["key"]
    except KeyError as error:
        raise UserError("no such key: give another.") from error


def bug_after_a_mistake(bug):
    try:
        mistake()
    except UserError:
        raise bug  # noqa: B904


def traceback_of(function, *args):
    try:
        function(*args)
    except Exception:
        return traceback.format_exc()


def launched():
    raise ProcessRaisedException(SPAWNED + traceback_of(mistake), 1, 4711)


@pytest.mark.parametrize("function", [mistake, launched])
def test_user_errors_become_one_line_and_exit_code_2(function, capsys):
    with pytest.raises(SystemExit) as caught:
        run_cleanly(function)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such key: give another.\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cleanly(lambda: 1 / 0)
    assert run_cleanly(lambda x: x + 1, 1) == 2
    for bug in (ValueError("a bug"), ZeroDivisionError()):
        assert sentence(ProcessRaisedException(traceback_of(bug_after_a_mistake, bug), 0, 1)) is None
    assert sentence(ValueError("x")) is None


def test_the_sentence_of_a_loader_worker():
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal " + traceback_of(mistake)
    assert sentence(UserError(wrapped)) == "no such key: give another."
    nested = "-- Process 0 terminated:\nTraceback (most recent call last):\nclim.errors.UserError: " + wrapped
    assert sentence(ProcessRaisedException(nested, 0, 1)) == "no such key: give another."


def test_raise_on_all_ranks(monkeypatch):
    with raise_on_all_ranks():
        pass
    with pytest.raises(UserError, match="^mine$") as caught, raise_on_all_ranks():
        raise UserError("mine")
    assert isinstance(caught.value.__cause__, UserError)
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("a bug")
    monkeypatch.setattr(comm, "all_gather", lambda mine: [mine, ("of rank 1", 1), ("of rank 2", 2)])
    with pytest.raises(UserError, match="^of rank 1$"), raise_on_all_ranks(0) as values:
        pass
    assert values == [0, 1, 2]
    with pytest.raises(UserError, match="^of rank 0$"), raise_on_all_ranks():
        raise UserError("of rank 0")


def test_an_unknown_name_is_an_error_with_the_known_ones():
    registry = Registry("THING")
    registry._do_register("Two", 2)
    registry._do_register("One", 1)
    assert registered(registry, "One", key="A.KEY") == 1
    with pytest.raises(UserError, match="A.KEY 'Three' is unknown: choose one of One, Two, or \"\""):
        registered(registry, "Three", key="A.KEY", otherwise=', or ""')
