"""Work shared by the processes that `accelerate launch` starts; alone when nothing launched us.

Each process takes one slice of a sorted list. A slice depends on the list and the number of processes alone, so that
what is computed together does not hang on timing.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import dataclass
from typing import TypeVar

from controlkit.errors import RequestError

T = TypeVar("T")
_LONGEST_PAUSE = 0.1  # seconds between two questions
_MEETINGS = itertools.count()  # all processes come to all of them, in the same order


@dataclass(frozen=True)
class Processes:
    """This process's rank among `count`."""

    rank: int = 0
    count: int = 1

    @staticmethod
    def launched() -> Processes:
        """As the launcher says in the environment; torch is loaded only where there is more than one process."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count > 1:
            import torch
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            # Without an accelerator PartialState joins the others only if it is told of the CPU; left to itself each
            # process would do all of the work, silently.
            state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())
            if state.num_processes != count:
                raise RequestError(
                    f"{count} processes were launched, but this one finds itself among {state.num_processes}; on a "
                    f"CPU launch with ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {count} …"
                )
            return Processes(state.process_index, state.num_processes)
        return Processes()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def slice(self, items: list[T]) -> list[T]:
        """This process's consecutive share."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def wait(self) -> None:
        """Until all have come here, however long one of them works alone.

        They ask after each other: who waits in a collective gives up when its time is over (by default after 10 minutes
        on GPUs), and takes the run down.
        """
        if self.count == 1:
            return
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        store, here = _get_default_store(), f"controlkit/{next(_MEETINGS)}"
        store.set(f"{here}/{self.rank}", "")
        everybody, pause = [f"{here}/{rank}" for rank in range(self.count)], 0.001
        while not store.check(everybody):
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        PartialState().wait_for_everyone()  # the store may leave with the first, so none leaves before all have asked

    def leave(self) -> None:
        """The end of the common work: all wait for each other, since a launcher ends the others when one leaves with an
        error, and close what connects them, or its threads abort an interpreter that shuts down."""
        if self.count > 1:
            from accelerate import PartialState

            self.wait()
            PartialState().destroy_process_group()

    def gather(self, items: list[T]) -> list[T]:
        """The shares of all processes, in the order of the whole list; one may have taken much longer than another."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        self.wait()
        gathered: list[T] = gather_object(items)
        return gathered
