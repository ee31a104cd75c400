"""Several worker processes under uvicorn's supervisor, which a signal ends at once."""

from __future__ import annotations

import contextlib
import time

from uvicorn.supervisors.multiprocess import Multiprocess, Process

_SLICE_SECONDS = 0.2


class Workers(Multiprocess):
    """uvicorn's supervisor. A signal does not wait for the health check of a worker that is only starting.

    uvicorn waits for the answer of one worker after the other, and looks at signals in between. A worker that was started because
    another one died answers after its imports, which take long on a loaded machine.
    """

    def keep_subprocess_alive(self) -> None:
        """Restart the workers that died or hang. uvicorn calls it twice a second."""
        for process in self.processes:
            if not self._answers(process):
                if not self.signal_queue:
                    super().keep_subprocess_alive()
                return

    def _answers(self, process: Process) -> bool:
        """Return whether a worker answers, before it dies, its time is over, or a signal comes."""
        end = time.monotonic() + self.config.timeout_worker_healthcheck
        with contextlib.suppress(OSError, EOFError):
            process.parent_conn.send(b"ping")
            while process.process.is_alive() and not self.signal_queue and time.monotonic() < end:
                if process.parent_conn.poll(_SLICE_SECONDS):
                    process.parent_conn.recv()
                    return True
        return False
