"""A user's mistake ends in one sentence and exit code 2, whichever process raises it."""

import traceback

import pytest
from detectron2.utils import comm
from fvcore.common.registry import Registry
from torch.multiprocessing import ProcessRaisedException

from clim.errors import UserError, raise_on_all_ranks, registered, run_cleanly, sentence


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run_cleanly(lambda: 1 / 0)
    assert run_cleanly(lambda x: x + 1, 1) == 2


def raised_in(function):
    try:
        function()
    except Exception:
        return traceback.format_exc()


def mistake_with_a_cause():
    try:
        {}["key"]
    except KeyError as error:
        raise UserError("no such key: give another.") from error


SPAWNED = "\n\n-- Process 1 terminated with the following error:\n"


@pytest.mark.parametrize("spawned", [False, True])
def test_user_errors_become_one_line_and_exit_code_2(spawned, capsys):
    def launched():
        raise ProcessRaisedException(SPAWNED + raised_in(mistake_with_a_cause), 1, 4711)

    with pytest.raises(SystemExit) as caught:
        run_cleanly(launched if spawned else mistake_with_a_cause)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no such key: give another.\n"


def test_the_sentence_of_a_loader_worker():
    wrapped = "Caught UserError in DataLoader worker process 0.\nOriginal " + raised_in(mistake_with_a_cause)
    assert sentence(UserError(wrapped)) == "no such key: give another."
    nested = "-- Process 0 terminated:\nTraceback (most recent call last):\nclim.errors.UserError: " + wrapped
    assert sentence(ProcessRaisedException(nested, 0, 1)) == "no such key: give another."


def test_an_error_after_a_user_error_is_no_sentence():
    def stumble():
        try:
            mistake_with_a_cause()
        except UserError:
            raise ValueError("a bug") from None

    def stumble_aloud():
        try:
            mistake_with_a_cause()
        except UserError:
            1 / 0  # noqa: B018

    for function in (stumble, stumble_aloud):
        assert sentence(ProcessRaisedException(raised_in(function), 0, 1)) is None
    assert sentence(ValueError("x")) is None


def test_raise_on_all_ranks_in_one_process():
    with raise_on_all_ranks():
        pass
    with pytest.raises(UserError, match="^mine$") as caught, raise_on_all_ranks():
        raise UserError("mine")
    assert isinstance(caught.value.__cause__, UserError)
    with pytest.raises(KeyError), raise_on_all_ranks():
        raise KeyError("a bug")


def test_raise_on_all_ranks_raises_another_process_error_here(monkeypatch):
    monkeypatch.setattr(comm, "all_gather", lambda told: [told, "of rank 1", "of rank 2"])
    with pytest.raises(UserError, match="^of rank 1$"), raise_on_all_ranks():
        pass
    with pytest.raises(UserError, match="^of rank 0$"), raise_on_all_ranks():
        raise UserError("of rank 0")


def test_a_name_that_a_registry_lacks_is_an_error_with_those_that_it_has():
    registry = Registry("THING")
    registry._do_register("Two", 2)
    registry._do_register("One", 1)
    assert registered(registry, "One", key="A.KEY") == 1
    with pytest.raises(UserError) as caught:
        registered(registry, "Three", key="A.KEY", otherwise=', or ""')
    assert str(caught.value) == "A.KEY 'Three' is unknown: choose one of One, Two, or \"\"."
