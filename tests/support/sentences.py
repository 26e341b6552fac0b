"""A mistake ends in one clear sentence: the one place that says what that is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from sqzoo.errors import SqzooError

LONGEST = 900  # characters


def assert_one_sentence(error: BaseException | str, *parts: object) -> None:
    """Assert that an error is one line of printable text that ends in a full stop and has these parts."""
    message = str(error)
    assert message.isprintable() and message.endswith(".") and len(message) < LONGEST, message
    for part in parts:
        assert str(part) in message, message


@contextmanager
def refusal(*parts: object) -> Iterator[None]:
    """Expect the block to end in an error of ours that is one sentence with these parts."""
    with pytest.raises(SqzooError) as caught:
        yield
    assert_one_sentence(caught.value, *parts)


def refused(call: Callable[[], Any], *parts: object) -> None:
    """Assert that a call ends in an error of ours that is one sentence with these parts."""
    with refusal(*parts):
        call()
