"""The classification extension: the highest classes of each row in place of its scores, as Triton gives them.

Each is one string, ``value:index`` or, where the classes have names, ``value:index:label``; the value has six
digits behind the point. The highest comes first, of equal ones that with the lower index. Whoever asks for
more classes than there are gets all.
"""

from __future__ import annotations

import numpy as np

from guard.arrays import Logits
from guard.artifact import OutputSpec
from guard.messages import Tensor

__all__ = ["classification"]


def classification(sink: OutputSpec, logits: Logits, count: int) -> Tensor:
    """Return the ``count`` highest classes of each row, BYTES of shape ``(n, min(count, k))``.

    Args:
        sink: The model's output, with the names of its classes.
        logits: Its rows, logits or probabilities.
        count: Classes wanted, at least 1.

    Examples:
        >>> sink = OutputSpec(name="y", datatype="FP32", classes=2, kind="logits", labels=("cat", "dog"))
        >>> classification(sink, np.array([[0.5, 2.0]], np.float32), 2).data.tolist()
        [[b'2.000000:1:dog', b'0.500000:0:cat']]
    """
    highest = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    words = [
        [_words(float(row[index]), int(index), sink.labels) for index in indices]
        for row, indices in zip(logits, highest, strict=True)
    ]
    return Tensor(sink.name, "BYTES", np.array(words, np.bytes_).reshape(highest.shape))


def _words(value: float, index: int, labels: tuple[str, ...] | None) -> bytes:
    label = "" if labels is None else f":{labels[index]}"
    return f"{value:f}:{index}{label}".encode()
