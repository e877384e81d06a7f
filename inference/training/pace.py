"""What the clock and the user ask of a run, read losses, save, stop; one answer on all ranks.

A process on its own looks at its clock and at Ctrl-C whenever it wants to know. Several agree
before every step, on what rank 0's clock says, and on what any of them was asked.
"""

import time

from ppl_med.inference.training.interrupts import Interrupts
from ppl_med.inference.training.ranks.together import Ranks
from ppl_med.inference.training.settings import Settings

REFRESH_SECONDS = 0.5


class Pace:
    """Says what is to be done now.

    Args:
        settings: The arguments of ``fit``.
        ranks: The processes that train together.

    Attributes:
        refresh: Seconds between two looks at the losses.
        interrupts: Where Ctrl-C is noted.
        saved_at: When the last checkpoint was written.
    """

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings, self.ranks = settings, ranks
        self.refresh, self.interrupts = REFRESH_SECONDS, Interrupts()
        self.saved_at = time.monotonic()
        self._agreed: frozenset[str] = frozenset()

    @property
    def shows(self) -> bool:
        """Whether this process shows a progress bar."""
        return self.settings.progress and self.ranks.rank == 0

    def agree(self, read_at: float, *, ended: bool = False, failed: bool = False) -> bool:
        """Ask all ranks, before a step; alone, nobody.

        Args:
            read_at: When losses were read last.
            ended: Whether there is no further batch in this epoch.
            failed: Whether this rank cannot go on.

        Returns:
            Whether another rank cannot go on.
        """
        if not self.ranks.several:
            return False
        first = self.ranks.rank == 0
        self._agreed = self.ranks.agree(
            asked=self.interrupts.asked,
            save=first and self._is_due(),
            read=self._is_late(read_at),
            ended=ended,
            more=not (ended or failed),
            failed=failed,
        )
        return "failed" in self._agreed and not failed

    def reads(self, read_at: float) -> bool:
        """Whether losses are to be read, the last time being ``read_at``."""
        return "read" in self._agreed if self.ranks.several else self._is_late(read_at)

    def saves(self) -> bool:
        """Whether a checkpoint is due."""
        return "save" in self._agreed if self.ranks.several else self._is_due()

    @property
    def asked(self) -> bool:
        """Whether somebody pressed Ctrl-C."""
        return "asked" in self._agreed if self.ranks.several else self.interrupts.asked

    def _is_late(self, read_at: float) -> bool:
        return self.shows and time.monotonic() - read_at >= self.refresh

    def _is_due(self) -> bool:
        return time.monotonic() - self.saved_at >= float(self.settings.checkpoint_every)
