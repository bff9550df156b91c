"""Deliveries to a place that fails now and then."""

import threading
import time

import pytest

from pipeline.tracking import outbox as module
from pipeline.tracking.outbox import Outbox


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_TRIES", 0.01)
    return []


@pytest.fixture
def outbox(told):
    box = Outbox(told.append)
    yield box
    box.close()


def test_what_fails_is_delivered_later_in_order_and_told_once(outbox, told):
    arrived, down = [], threading.Event()
    down.set()

    def deliver(number):
        if down.is_set():
            raise OSError("no route")
        arrived.append(number)

    for number in range(20):
        outbox.put(lambda number=number: deliver(number))
    assert not outbox.drained(0.1)
    assert arrived == []
    assert [str(failure) for failure in told] == ["no route"]
    down.clear()
    assert outbox.drained(5)
    assert arrived == list(range(20))
    assert [str(failure) for failure in told] == ["no route", "None"]


def test_one_hiccup_is_not_worth_a_word(outbox, told):
    tries = []

    def deliver():
        tries.append(None)
        if len(tries) == 1:
            raise OSError

    outbox.put(deliver)
    assert outbox.drained(5)
    assert (len(tries), told) == (2, [])


def test_putting_never_waits_and_a_slow_delivery_is_waited_for(outbox):
    arrived = []
    begin = time.perf_counter()
    outbox.put(lambda: (time.sleep(0.3), arrived.append(1)))
    assert time.perf_counter() - begin < 0.2
    assert outbox.drained(0.0), "patience is for failures, not for slowness"
    assert arrived == [1]


class OfACloud(Exception):
    """As clients of stores of files have them: of no common kind."""


@pytest.mark.parametrize("failure", [OSError, ImportError, OfACloud, ZeroDivisionError])
def test_whatever_a_delivery_raises_it_is_made_again(failure, outbox, told):
    arrived, tries = [], []

    def deliver():
        tries.append(None)
        if len(tries) < 4:
            raise failure("SlowDown")
        arrived.append(1)

    outbox.put(deliver)
    outbox.put(lambda: arrived.append(2))
    assert outbox.drained(5)
    assert arrived == [1, 2]
    assert [str(each) for each in told] == ["SlowDown", "None"]


def test_closing_gives_up_what_fails(told):
    box, tries = Outbox(told.append), []

    def deliver():
        tries.append(None)
        raise OSError

    box.put(deliver)
    while not tries:
        time.sleep(0.001)
    box.close()
    count = len(tries)
    time.sleep(0.05)
    assert len(tries) == count
