"""The process that talks to the controller: hosted by neutron-periodic-workers, or a thread of a one-process server.

Any number may run; a lease in Neutron's database lets one of them lead, and the others wait for its end.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import threading
import uuid
from typing import NoReturn

from neutron import worker as neutron_worker

LOG = logging.getLogger(__name__)


class HeadraceWorker(neutron_worker.NeutronBaseWorker):
    """Runs ``sync.Sync`` in an event loop of its own thread, from ``start`` to ``stop``."""

    def __init__(self, *, own_process: bool = True) -> None:
        super().__init__(worker_process_count=1 if own_process else 0, desc="headrace worker")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[NoReturn] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; called in the process that shall do the work."""
        from headrace.neutron.sync import Sync  # only the process that works needs an HTTP client

        super().start(desc=self.desc)
        if self.worker_process_count:
            # Neutron's own objects stay for good: a full collection that walks them all stops the work for 0.3 s.
            gc.collect()
            gc.freeze()
        holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(Sync(holder).run(), name=holder)
        self._thread = threading.Thread(target=run, args=(self._loop, self._task), name=self.desc, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for the end, giving the lease back."""
        if self._loop is not None and self._task is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._task.cancel)

    def wait(self) -> None:
        """Return when the work has ended."""
        if self._thread is not None:
            self._thread.join()

    def reset(self) -> None:
        """Options are read once: a changed one needs a restart."""


def run(loop: asyncio.AbstractEventLoop, task: asyncio.Task[NoReturn]) -> None:
    """Be the thread that works, until the task is cancelled."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(task)
    except asyncio.CancelledError:
        LOG.info("headrace worker %s stopped", task.get_name())
    except Exception:
        # A dead task ends the process; its parent starts another.
        LOG.exception("headrace worker %s died", task.get_name())
        os._exit(1)
    finally:
        loop.close()
