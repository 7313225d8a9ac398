"""Work shared by the processes that `accelerate launch` starts; alone when nothing launched us.

Each process takes one slice of a sorted list. A slice depends on the list and the number of processes alone, so that
what is computed together does not hang on timing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

from controlkit.errors import RequestError

T = TypeVar("T")


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

    def leave(self) -> None:
        """The end of the common work: all wait for each other, since a launcher ends the others when one leaves with an
        error, and close what connects them, or its threads abort an interpreter that shuts down."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()
            PartialState().destroy_process_group()

    def gather(self, items: list[T]) -> list[T]:
        """The shares of all processes, in the order of the whole list."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object(items)
        return gathered
