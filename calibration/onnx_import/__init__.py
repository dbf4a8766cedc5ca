"""From an ONNX graph to a ``torch.fx`` module that can be trained: real layers, any batch size.

``importer`` walks the graph; ``ops_*`` hold one table of converters for each family of operators; ``builder``
grows the torch graph and knows every shape; ``functions`` are the operators that torch lacks.
"""

from calibration.onnx_import.importer import import_onnx
from calibration.onnx_import.registry import SUPPORTED

__all__ = ["SUPPORTED", "import_onnx"]
