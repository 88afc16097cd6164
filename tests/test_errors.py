"""Errors: one root, and who is wrong by its children."""

import pickle

import pytest

from usagekeeper import ConfigurationError, Decision, QuotaExceeded, StoreUnavailable, UsageError

DECISION = Decision(429, "quota-exceeded", "The limit p-minute of 5 is used up.", "acme", ("p-minute",), 12, 0, 1.5)


@pytest.mark.parametrize("kind", [ConfigurationError, StoreUnavailable, QuotaExceeded])
def test_everything_raised_has_one_root(kind: type[Exception]) -> None:
    assert issubclass(kind, UsageError)
    assert issubclass(kind, Exception)


def test_a_wrong_option_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="sentence"):
        raise ConfigurationError("A sentence.")


@pytest.mark.parametrize("kind", [StoreUnavailable, QuotaExceeded])
def test_others_are_no_value_errors(kind: type[Exception]) -> None:
    assert not issubclass(kind, ValueError)


def test_a_quota_that_was_exceeded_tells_what_is_left_and_when_there_is_more() -> None:
    error = QuotaExceeded("The limit is used up.", decision=DECISION)
    assert (error.decision, error.remaining, error.renews_at) == (DECISION, 0, 1.5)
    assert str(error) == "The limit is used up."


@pytest.mark.parametrize("error", [UsageError("a"), ConfigurationError("a"), StoreUnavailable("a")], ids=repr)
def test_an_error_survives_a_trip_to_another_process(error: UsageError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), "a")


def test_an_exceeded_quota_survives_a_trip_to_another_process() -> None:
    copy = pickle.loads(pickle.dumps(QuotaExceeded("a", decision=DECISION)))
    assert (str(copy), copy.decision) == ("a", DECISION)
