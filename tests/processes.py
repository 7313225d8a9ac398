"""Several processes as threads of one: for what they agree on and how they share work, without starting any."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from controlkit.processes import Processes


@dataclass
class _Meeting:
    barrier: threading.Barrier
    items: dict = field(default_factory=dict)


class ThreadedProcesses(Processes):
    """A rank whose `gather` meets the other ranks'."""

    def __init__(self, rank, count, meeting):
        super().__init__(rank, count)
        object.__setattr__(self, "meeting", meeting)

    def gather(self, items):
        self.meeting.items[self.rank] = items
        self.meeting.barrier.wait(60)
        everything = [item for rank in range(self.count) for item in self.meeting.items[rank]]
        self.meeting.barrier.wait(60)
        return everything


def together(work, count=2):
    """What `work(processes)` gives on each of `count` ranks."""
    meeting = _Meeting(threading.Barrier(count))

    def run(rank):
        try:
            return work(ThreadedProcesses(rank, count, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
