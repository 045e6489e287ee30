"""Buffers that outlive a request: allocated once, recorded once, used by one request at a time.

In: models, capacities. Out: target buffers and device drafters that later requests take over. It
does not know requests' contents.
"""

from collections.abc import Callable
from dataclasses import replace

from specx.core.config import Parts
from specx.core.decoder import Model
from specx.core.drafts.device import DeviceDrafter
from specx.core.drafts.growth import StepCosts
from specx.core.drafts.model import DraftSettings
from specx.core.sampling import Sampler
from specx.core.target import TargetBuffers

_ROUND_ROWS = 256  # similar requests share a workspace


class Workspace:
    """A target's buffers and, by the parts of a mode, the drafters that read its progress."""

    def __init__(self, target: Model, capacity: int) -> None:
        """``capacity``: rows of the target's cache, rounded up."""
        self.capacity = -(-capacity // _ROUND_ROWS) * _ROUND_ROWS
        self.buffers = TargetBuffers(target, self.capacity)
        self._drafters: dict[Parts, DeviceDrafter] = {}

    def drafter(
        self,
        settings: DraftSettings,
        sampler: Sampler,
        costs: Callable[[], StepCosts] | None,
    ) -> DeviceDrafter:
        """The drafter for the parts of ``settings``, at the start of a request; its capacity is
        the workspace's."""
        parts = settings.parts
        if parts not in self._drafters:
            shared = next((each.full_cache for each in self._drafters.values()), None)
            settings = replace(settings, capacity=self.capacity)
            self._drafters[parts] = DeviceDrafter(self.buffers, settings, sampler, costs, shared)
        drafter = self._drafters[parts]
        drafter.begin(sampler, costs)
        return drafter


class Workspaces:
    """The workspace that is free, if any: a request takes it and gives it back at its end."""

    def __init__(self, target: Model) -> None:
        self._target = target
        self._free: Workspace | None = None

    def take(self, capacity: int) -> Workspace:
        """A workspace of at least ``capacity`` rows; a smaller free one makes room for it first."""
        found, self._free = self._free, None
        if found is not None and found.capacity >= capacity:
            return found
        del found
        return Workspace(self._target, capacity)

    def give_back(self, workspace: Workspace) -> None:
        """Keep the larger of two."""
        if self._free is None or self._free.capacity < workspace.capacity:
            self._free = workspace

    def drop(self) -> None:
        """Free what is free, for want of memory."""
        self._free = None
