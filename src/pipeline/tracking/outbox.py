"""Deliveries to a place that may be out of reach for a while: a thread makes them in order, each until it succeeds."""

import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable

SECONDS_BETWEEN_TRIES = 2.0

Delivery = Callable[[], object]


class Outbox:
    """Takes deliveries at once and makes them one after the other in a thread of its own.

    A delivery that fails is made again until it succeeds, so it must do no harm twice: whatever it raises, since the
    libraries of all the places where files are kept have errors of their own. ``told`` hears of each outage once, when
    the second try fails, and of its end.
    """

    def __init__(self, told: Callable[[Exception | None], None]) -> None:
        self._told = told
        self._waiting: queue.Queue[Delivery] = queue.Queue()
        self._closed = threading.Event()
        self.failing = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Takes a delivery."""
        self._waiting.put(delivery)

    def drained(self, patience: float) -> bool:
        """Waits until all is delivered, where deliveries fail ``patience`` seconds at most; says whether all is."""
        since = time.monotonic()
        while self._waiting.unfinished_tasks:
            if not self.failing:
                since = time.monotonic()
            elif time.monotonic() - since >= patience:
                return False
            time.sleep(0.01)
        return True

    def close(self) -> None:
        """Ends the thread after the try that it is at; what is not delivered by then is not."""
        self._closed.set()
        self._waiting.put(lambda: None)
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            self._deliver(self._waiting.get())
            self._waiting.task_done()

    def _deliver(self, delivery: Delivery) -> None:
        for tried in itertools.count():
            try:
                delivery()
            except Exception as failure:
                self.failing = True
                if tried == 1:
                    self._tell(failure)
                if self._closed.wait(SECONDS_BETWEEN_TRIES):
                    return
            else:
                self.failing = False
                if tried > 1:
                    self._tell(None)
                return

    def _tell(self, failure: Exception | None) -> None:
        with contextlib.suppress(OSError):  # whoever listened may have gone
            self._told(failure)
