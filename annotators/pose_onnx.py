"""ONNX networks, by onnxruntime where it is installed, else by OpenCV."""

from __future__ import annotations

import threading
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    Tensor = NDArray[np.float32]


_CUDA = "CUDAExecutionProvider"


def onnxruntime_version() -> str | None:
    """Which onnxruntime runs the networks; None: OpenCV does."""
    return None if find_spec("onnxruntime") is None else str(import_module("onnxruntime").__version__)


class OnnxNetwork:
    """Called with one input, it gives the outputs in the order of the file."""

    def __init__(self, path: Path, device: str | None) -> None:
        self._run = _by_opencv(path, device) if onnxruntime_version() is None else _by_onnxruntime(path, device)
        self._one_at_a_time = threading.Lock()  # neither promises that two threads may share a network

    def __call__(self, tensor: Tensor) -> list[Tensor]:
        with self._one_at_a_time:
            return [output.copy() for output in self._run(tensor)]


def _by_onnxruntime(path: Path, device: str | None) -> Any:
    onnxruntime: Any = import_module("onnxruntime")
    there = onnxruntime.get_available_providers()
    providers: list[Any] = ["CPUExecutionProvider"]
    if device is None and _CUDA in there:
        providers.insert(0, _CUDA)
    elif device not in (None, "cpu"):
        if _CUDA not in there:
            here = ", ".join(there)
            raise ValueError(
                f"device={device!r}: onnxruntime has {here} here; use device=cpu, or install onnxruntime-gpu"
            )
        providers.insert(0, (_CUDA, {"device_id": int(device.partition(":")[2] or 0)}))
    try:
        session = onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as reason:  # its exceptions have no common class of their own
        raise _unreadable(path, reason) from None
    name = session.get_inputs()[0].name
    return lambda tensor: session.run(None, {name: tensor})


def _by_opencv(path: Path, device: str | None) -> Any:
    import cv2

    if device not in (None, "cpu"):
        raise ValueError(f"device={device!r}: OpenCV runs networks on the CPU; for a GPU, pip install onnxruntime-gpu")
    try:
        network = cv2.dnn.readNetFromONNX(str(path))
    except cv2.error as reason:
        raise _unreadable(path, reason) from None
    names = network.getUnconnectedOutLayersNames()

    def run(tensor: Tensor) -> Any:
        network.setInput(tensor)
        return network.forward(names)

    return run


def _unreadable(path: Path, reason: Exception) -> ValueError:
    return ValueError(f"{path}: expected an ONNX network ({' '.join(str(reason).split())[:160]}); fetch it again")
