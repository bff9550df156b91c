"""Deliveries to a place that may be out of reach for a while: a thread makes them in order, each until it succeeds."""

import itertools
import queue
import threading
import time
from collections.abc import Callable

SECONDS_BETWEEN_TRIES = 2.0

Delivery = Callable[[], object]


class Outbox:
    """Takes deliveries at once and makes them one after the other in a thread of its own.

    A delivery that fails with one of ``failures`` is made again until it succeeds, so it must do no harm twice.
    ``told`` hears of each outage once, when the second try fails, and of its end. Any other exception is a bug: it ends
    the deliveries, and ``drained`` raises it.
    """

    def __init__(self, failures: tuple[type[Exception], ...], told: Callable[[Exception | None], None]) -> None:
        self._failures, self._told = failures, told
        self._waiting: queue.Queue[Delivery] = queue.Queue()
        self._closed = threading.Event()
        self._bug: Exception | None = None
        self.failing = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Takes a delivery."""
        self._waiting.put(delivery)

    def drained(self, patience: float) -> bool:
        """Waits until all is delivered, where deliveries fail ``patience`` seconds at most; says whether all is."""
        since = time.monotonic()
        while self._waiting.unfinished_tasks and self._bug is None:
            if not self.failing:
                since = time.monotonic()
            elif time.monotonic() - since >= patience:
                return False
            time.sleep(0.01)
        if self._bug is not None:
            raise self._bug
        return True

    def close(self) -> None:
        """Ends the thread after the try that it is at; what is not delivered by then is not."""
        self._closed.set()
        self._waiting.put(lambda: None)
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            delivery = self._waiting.get()
            try:
                self._deliver(delivery)
            except Exception as bug:
                self._bug = bug
                return
            self._waiting.task_done()

    def _deliver(self, delivery: Delivery) -> None:
        for tried in itertools.count():
            try:
                delivery()
            except self._failures as failure:
                self.failing = True
                if tried == 1:
                    self._told(failure)
                if self._closed.wait(SECONDS_BETWEEN_TRIES):
                    return
            else:
                self.failing = False
                if tried > 1:
                    self._told(None)
                return
