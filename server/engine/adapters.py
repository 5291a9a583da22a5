"""The adapters that the engine holds: one per combination of forget sets, loaded before the first request for it.

vLLM evicts adapters by itself and reads them again from disk inside an engine step, where a missing file ends the
engine. So the server holds at most as many as the engine keeps, and itself evicts the least recently used one that is
idle. No client can fill the disk or the memory by asking for ever new combinations.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from unlearngate.artefact import ForgetSet
from unlearngate.errors import BusyError, UnlearngateError
from unlearngate.server.engine import compat
from unlearngate.server.engine.bindings import Binding, Bindings
from unlearngate.server.metrics import ADAPTER_EVICTIONS, ADAPTER_LOADS


class Adapters:
    """Acquire before a request, release after it: an adapter in use is never removed."""

    def __init__(self, bindings: Bindings, engine: Any, state: Any, capacity: int) -> None:
        self._bindings = bindings
        self._engine = engine
        self._state = state
        self._capacity = capacity
        self._in_use: OrderedDict[Binding, int] = OrderedDict()  # least recently used first
        self._changing = asyncio.Lock()

    async def acquire(self, sets: Sequence[ForgetSet]) -> Binding:
        """The loaded adapter that binds `sets` to branches, in this order.

        Raises: BusyError (503) if all adapters are in use; ArtefactError if a set was changed on disk;
            UnlearngateError if the engine could not load it. No adapter is held then.
        """
        binding = self._bindings.known_binding(sets)
        if binding is not None and binding in self._in_use:
            return self._hold(binding)
        # Loading finishes even if the client disconnects: the engine and this record must agree.
        loading = asyncio.create_task(self._acquire_new(sets))
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(self._release_unwanted)
            raise

    def release(self, binding: Binding) -> None:
        """Release the adapter of a request that has ended."""
        self._in_use[binding] -= 1

    async def _acquire_new(self, sets: Sequence[ForgetSet]) -> Binding:
        async with self._changing:
            binding = self._bindings.known_binding(sets)
            if binding is None or binding not in self._in_use:
                await self._make_room()
                binding = await asyncio.to_thread(self._bindings.bind, sets)
                await self._load(binding)
                self._in_use[binding] = 0
            return self._hold(binding)

    def _hold(self, binding: Binding) -> Binding:
        self._in_use[binding] += 1
        self._in_use.move_to_end(binding)
        return binding

    def _release_unwanted(self, loading: asyncio.Task[Binding]) -> None:
        if not loading.cancelled() and loading.exception() is None:
            self.release(loading.result())

    async def _load(self, binding: Binding) -> None:
        adapter = compat.LoRARequest(binding.name, binding.adapter_id, str(binding.folder))
        try:
            loaded = await self._engine.add_lora(adapter)
        except BaseException:
            self._bindings.unbind(binding)
            raise
        if not loaded:
            self._bindings.unbind(binding)
            raise UnlearngateError(f"the engine could not load the adapter {binding.name}")
        ADAPTER_LOADS.inc()
        compat.bind_adapter(self._state, adapter)

    async def _make_room(self) -> None:
        if len(self._in_use) < self._capacity:
            return
        oldest = next((binding for binding, users in self._in_use.items() if users == 0), None)
        if oldest is None:
            raise BusyError(
                f"all {self._capacity} combinations of forget sets that this server keeps are in use; try again, "
                "or start the server with a larger --max-known"
            )
        del self._in_use[oldest]
        compat.unbind_adapter(self._state, oldest.name)
        await self._engine.remove_lora(oldest.adapter_id)
        ADAPTER_EVICTIONS.inc()
        await asyncio.to_thread(self._bindings.unbind, oldest)
