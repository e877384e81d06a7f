"""What a recording asks of torch: the generators, the stream, and the errors of this thread alone.

On a GPU the rest of it is tested by ``test_captured_steps`` and ``test_fresh_noise``; here torch's
calls are noted, so that an order that loses noise is seen on any machine.
"""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ppl_med.inference.training.captured.cuda_graph import CudaGraph


class Stream:
    def __init__(self, notes: list[str], name: str) -> None:
        self.notes, self.name = notes, name

    def wait_stream(self, other: "Stream") -> None:
        self.notes.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of torch.cuda, which works on streams named here and side."""
    noted: list[str] = []
    recorded = SimpleNamespace(
        register_generator_state=lambda generator: noted.append(f"registers {generator}"),
        replay=lambda: noted.append("replays"),
        reset=lambda: noted.append("resets"),
    )

    @contextlib.contextmanager
    def inside(what: str) -> Iterator[None]:
        noted.append(f"enters {what}")
        yield
        noted.append(f"leaves {what}")

    def graph(own: Any, *, stream: Stream, capture_error_mode: str) -> Any:
        assert own is recorded
        return inside(f"the recording on {stream.name}, {capture_error_mode}")

    imitation: dict[str, Any] = {
        "current_device": lambda: 1,
        "device": lambda _: contextlib.nullcontext(),
        "default_generators": ("generator 0", "generator 1"),
        "Stream": lambda: Stream(noted, "side"),
        "CUDAGraph": lambda: recorded,
        "current_stream": lambda: Stream(noted, "here"),
        "stream": lambda stream: inside(stream.name),
        "set_stream": lambda stream: noted.append(f"goes back to {stream.name}"),
        "synchronize": lambda _: noted.append("waits for the GPU"),
        "graph": graph,
    }
    for name, value in imitation.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return noted


def test_generators_are_registered_before_anything_is_recorded(notes: list[str]) -> None:
    graph = CudaGraph(torch.device("cuda"))
    assert notes == ["registers generator 1"]
    notes.clear()
    assert graph.record(lambda: notes.append("works") or 3) == 3  # type: ignore[func-returns-value]
    assert notes == [
        *("enters the recording on side, thread_local", "works"),
        *("leaves the recording on side, thread_local", "goes back to here"),
    ]


def test_work_aside_waits_and_is_waited_for(notes: list[str]) -> None:
    graph = CudaGraph(torch.device("cuda", 0))
    notes.clear()
    graph.aside(lambda: notes.append("works"))
    steps = ["side waits for here", "enters side", "works", "leaves side", "here waits for side"]
    assert notes == steps


def test_the_stream_is_left_where_a_recording_fails(notes: list[str]) -> None:
    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    graph = CudaGraph(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="not permitted"):
        graph.record(fail)
    assert notes[-1] == "goes back to here"


def test_memory_is_given_back_once_the_gpu_is_done(notes: list[str]) -> None:
    graph = CudaGraph(torch.device("cuda"))
    notes.clear()
    graph.replay()
    graph.close()
    assert notes == ["replays", "waits for the GPU", "resets"]
