"""A recorded piece of work on a GPU: all that the rest of the library knows of CUDA graphs.

While work is recorded, it is not done. A replay repeats its kernels on the same addresses; numbers
of the host are as they were when it was recorded. Random numbers go on from one replay to the next
where their generator is registered with the graph.

Reference: "CUDA graphs" in PyTorch's notes on CUDA semantics.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

import torch

Result = TypeVar("Result")


class CudaGraph:
    """One recorded function.

    Args:
        device: A GPU, in use already.
        generators: Those that the function draws from, besides the device's own.
    """

    def __init__(self, device: torch.device, generators: Iterable[torch.Generator] = ()) -> None:
        index = torch.cuda.current_device() if device.index is None else device.index
        self.device = torch.device("cuda", index)
        with torch.cuda.device(self.device):
            self._stream, self._graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
            for generator in (torch.cuda.default_generators[index], *generators):
                self._graph.register_generator_state(generator)

    def aside(self, run: Callable[[], Result]) -> Result:
        """Do work on the stream of the recording, as libraries must have once before it."""
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                result = run()
            here.wait_stream(self._stream)
        return result

    def record(self, run: Callable[[], Result]) -> Result:
        """Record a function without doing its work; each replay writes to what it returned.

        Errors of this thread alone count: a loader's thread may pin memory meanwhile.

        Raises:
            RuntimeError: If the host waits for the device in it.
        """
        with torch.cuda.device(self.device):
            here = torch.cuda.current_stream()
            graph = torch.cuda.graph(
                self._graph, stream=self._stream, capture_error_mode="thread_local"
            )
            try:
                with graph:
                    return run()
            finally:  # which torch leaves out where the recording fails
                torch.cuda.set_stream(here)

    def replay(self) -> None:
        """Do the work."""
        with torch.cuda.device(self.device):
            self._graph.replay()

    def close(self) -> None:
        """Give the memory back, once the last replay is done."""
        with suppress(RuntimeError):  # of an earlier error of the GPU, which is told already
            torch.cuda.synchronize(self.device)
        self._graph.reset()
