"""Ctrl-C and SIGTERM while a coordinator waits for sites, and in a round."""

from __future__ import annotations

import signal

import pytest

from tauon.federated.stopping import StopWaiting, stop_at_once
from tauon.train import StopSignal

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_site_stops_at_the_first_signal_inside_training_that_would_collect_it(number: signal.Signals) -> None:
    with StopSignal().listening() as training:
        with pytest.raises(KeyboardInterrupt), stop_at_once():
            signal.raise_signal(number)
        assert training.name is None
        signal.raise_signal(number)  # outside, training hears it as before
        assert training.name == number.name


@pytest.mark.parametrize("number", SIGNALS)
def test_a_coordinator_that_waits_for_sites_stops_at_the_first_signal(number: signal.Signals) -> None:
    notes: list[str] = []
    stop = StopWaiting(notes.append)
    with StopSignal().listening() as training, stop.listening():
        with pytest.raises(KeyboardInterrupt), stop.waiting():
            signal.raise_signal(number)
        assert training.name is None and not notes


@pytest.mark.parametrize("number", SIGNALS)
def test_in_a_round_the_round_is_ended_first_and_no_wait_begins_after_it(number: signal.Signals) -> None:
    notes: list[str] = []
    stop = StopWaiting(notes.append)
    with StopSignal().listening() as training, stop.listening():
        signal.raise_signal(number)
        assert training.name == number.name and "when this round is done" in notes[0]
        with pytest.raises(KeyboardInterrupt), stop.waiting():
            pytest.fail("it waits")
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second Ctrl-C
        assert len(notes) == 1


def test_handlers_are_those_of_before_afterwards() -> None:
    before = [signal.getsignal(s) for s in SIGNALS]
    with StopWaiting(print).listening(), stop_at_once():
        assert [signal.getsignal(s) for s in SIGNALS] != before
    assert [signal.getsignal(s) for s in SIGNALS] == before
