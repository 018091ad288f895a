"""Writing beside the work that goes on."""

import threading
import time
from collections.abc import Callable


class Writing(threading.Thread):
    """Runs `write` in a thread of its own. `error` is what it raised, once it has ended."""

    def __init__(self, write: Callable[[], None]) -> None:
        super().__init__(name="d3po writing")
        self.write, self.began = write, time.monotonic()
        self.error: Exception | None = None
        self.ended: float | None = None
        self.start()

    def run(self) -> None:
        try:
            self.write()
        except Exception as error:
            self.error = error
        finally:
            self.ended = time.monotonic()

    @property
    def took(self) -> float:
        """Seconds, so far where it has not ended."""
        return (self.ended or time.monotonic()) - self.began
