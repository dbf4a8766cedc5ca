"""An ONNX Runtime session on the device and in the precision asked for."""

from __future__ import annotations

from typing import Final, Literal

import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

from guard.artifact.precision import Precision
from guard.errors import SettingsError, UnfitModelError
from guard.runtime.capture_gate import GPU

__all__ = ["CUDA", "ORT_ERRORS", "Device", "cuda_options", "first_line", "is_on_cuda", "open_session"]

Device = Literal["auto", "cpu", "cuda"]

CUDA: Final = "CUDAExecutionProvider"
_CPU: Final = "CPUExecutionProvider"

ORT_ERRORS: Final[tuple[type[Exception], ...]] = (
    ort_state.EPFail,
    ort_state.Fail,
    ort_state.InvalidArgument,
    ort_state.InvalidGraph,
    ort_state.InvalidProtobuf,
    ort_state.NotImplemented,
    ort_state.RuntimeException,
)
"""What ONNX Runtime raises when a model cannot be loaded or run."""

_LOAD_ERRORS: Final[tuple[type[Exception], ...]] = (*ORT_ERRORS, ValueError)


def open_session(
    model: onnx.ModelProto, *, device: Device, threads: int | None, precision: Precision, cuda_graphs: bool
) -> ort.InferenceSession:
    """Load a graph on the device.

    Args:
        model: The whole graph, weights inline, already in half precision where that is asked for.
        device: ``auto`` takes CUDA where there is one.
        threads: CPU threads for one call; None for one a core.
        precision: ``tf32`` lets CUDA multiply float32 in TF32; the CPU has no such thing.
        cuda_graphs: Whether CUDA captures what is run, and replays it.

    Raises:
        UnfitModelError: If ONNX Runtime cannot load the graph, or cannot capture it.
        SettingsError: If ``cuda`` is asked for and there is none, or TF32 where it is not CUDA that runs.
    """
    available = ort.get_available_providers()
    if device == "cuda" and CUDA not in available:
        raise SettingsError(
            f"device 'cuda' was asked for, but ONNX Runtime offers only {', '.join(available)}; install "
            f"inference-guard[gpu] in place of [cpu], or set device to 'cpu'"
        )
    on_cuda = device != "cpu" and CUDA in available
    cuda = [(CUDA, cuda_options(precision, cuda_graphs=cuda_graphs))] if on_cuda else []
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        with GPU.shared():
            session = ort.InferenceSession(model.SerializeToString(), options, providers=[*cuda, _CPU])
    except _LOAD_ERRORS as error:
        without = ", or serve it without cuda_graphs" if cuda and cuda_graphs else ""
        raise UnfitModelError(
            f"ONNX Runtime {ort.__version__} cannot load the model: {first_line(error)}; export it again, "
            f"for a supported opset, and calibrate it{without}"
        ) from error
    if device == "cuda" and not is_on_cuda(session):
        raise SettingsError(
            "device 'cuda' was asked for, but CUDA could not be started; see the log of ONNX Runtime"
        )
    if precision == "tf32" and not is_on_cuda(session):
        raise SettingsError(
            "precision 'tf32' was asked for, but the model runs on the CPU, which has none; set device to "
            "'cuda', or precision to 'exact'"
        )
    return session


def cuda_options(precision: Precision, *, cuda_graphs: bool) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider.

    TF32 would move scores by about 1e-3 from those that the boundary was calibrated with elsewhere, so that
    it is off unless asked for. Batches come in many sizes: the default, a benchmark of cuDNN's algorithms for
    each new size, would hold up the first batch of each, and may choose differently at every start.
    """
    return {
        "use_tf32": "1" if precision == "tf32" else "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "enable_cuda_graph": "1" if cuda_graphs else "0",
    }


def is_on_cuda(session: ort.InferenceSession) -> bool:
    """Return whether the session runs on CUDA."""
    return bool(session.get_providers()[0] == CUDA)


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says; on CUDA, ONNX Runtime appends a backtrace."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
