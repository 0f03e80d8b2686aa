"""The first Ctrl-C waits for the end of the block, the second does not, and afterwards all is as before."""

from __future__ import annotations

import signal
import threading

import pytest

from server.interrupts import interrupts_wait


def test_the_first_interrupt_comes_when_the_block_is_done() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with interrupts_wait():
            signal.raise_signal(signal.SIGINT)
            done.append(True)
        done.append(False)
    assert done == [True]


def test_the_second_interrupt_stops_at_once() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append(True)
    assert done == []


def test_the_handler_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with interrupts_wait():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="x"), interrupts_wait():
        raise ValueError("x")


def test_in_another_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with interrupts_wait():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
