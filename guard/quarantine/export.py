"""Items of one model as arrays, for whoever looks for what they have in common."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guard.errors import ArtifactError, MissingFileError
from guard.quarantine.item import ItemRecord
from guard.quarantine.reading import read_image

__all__ = ["export_items"]


def export_items(root: Path, items: Sequence[ItemRecord], out: Path) -> list[ItemRecord]:
    """Write items to an ``.npz`` file; return those that were still there.

    Keys: ``images`` (n, …), in the model's layout and dtype as they were sent; ``scores`` (n,) float64, bits;
    ``labels`` (n,) int64, the class that the model gave, -1 where it is not known; ``times`` (n,) float64,
    seconds since the epoch; ``ids`` (n,), text.

    Args:
        root: The quarantine folder.
        items: At least one.
        out: The file.

    Raises:
        ArtifactError: If the items differ in shape or dtype, none is there any more, or one is damaged.
        OSError: If the file cannot be written.
    """
    _check_alike(items)
    kept: list[ItemRecord] = []
    images: list[np.ndarray] = []
    for item in items:
        try:
            images.append(read_image(root, item))
        except MissingFileError:
            continue
        kept.append(item)
    if not kept:
        raise ArtifactError(f"none of the {len(items)} items chosen is in {root} any more; look again")
    content = io.BytesIO()
    np.savez(
        content,
        images=np.stack(images),
        scores=np.array([item.score for item in kept], np.float64),
        labels=np.array([item.label for item in kept], np.int64),
        times=np.array([item.at for item in kept], np.float64),
        ids=np.array([item.id for item in kept]),
    )
    draft = out.with_name(f".writing-{out.name}")
    try:
        draft.write_bytes(content.getbuffer())
        draft.rename(out)
    finally:
        draft.unlink(missing_ok=True)
    return kept


def _check_alike(items: Sequence[ItemRecord]) -> None:
    kinds = Counter((item.shape, item.dtype, item.layout) for item in items)
    if len(kinds) > 1:
        found = ", ".join(
            f"{count} of {shape} {dtype} {layout}" for (shape, dtype, layout), count in kinds.most_common()
        )
        raise ArtifactError(
            f"the items chosen differ in shape, dtype or layout ({found}), so they fit into no one array; "
            f"choose those of one version with --model-version"
        )
