"""The first signal asks, the second one acts; a launcher's echo of the first is not a second one."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from covey.interrupt import Interrupt


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """What a terminal gives: a shell starts background jobs with SIGINT ignored, and then a second one is ignored too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_only_asks(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(number)
        assert interrupt.asked
    assert signal.getsignal(number) is before


def test_the_second_signal_ends_at_once() -> None:
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_echo_under_a_launcher_is_not_a_second_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert interrupt.asked
        monkeypatch.setattr("covey.interrupt.ECHO_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
