"""Read what a guard has put in quarantine, while it may be at work there."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guard.artifact.npy import load_npy
from guard.detection.threshold import Verdict
from guard.errors import ArtifactError, MissingFileError
from guard.quarantine.disk import image_path, list_folder, model_folders, read_plain, read_record
from guard.quarantine.item import ITEM_ID, ItemRecord, folder_of
from guard.quarantine.shelf import Place

__all__ = ["Contents", "find_item", "read_contents", "read_image"]


@dataclass(frozen=True)
class Contents:
    """What is in a quarantine folder.

    Attributes:
        items: The newest first.
        passed_over: Files that are damaged or foreign, by path.
    """

    items: tuple[ItemRecord, ...]
    passed_over: tuple[Path, ...]


def read_contents(
    root: Path, *, model: str | None = None, since: float | None = None, verdict: Verdict | None = None
) -> Contents:
    """Return the items in a folder.

    Args:
        root: The folder of the setting ``quarantine_dir``.
        model: Only of this one.
        since: Only those seen at this moment or later, seconds since the epoch.
        verdict: Only those.

    Raises:
        MissingFileError: If there is no such folder.
    """
    items: list[ItemRecord] = []
    passed_over: list[Path] = []
    for folder in _folders(root, model):
        try:
            listing = list_folder(folder)
        except OSError:
            passed_over.append(folder)
            continue
        passed_over += [folder / name for name in listing.foreign]
        for id_ in listing.ids:
            try:
                items.append(read_record(root, Place(id_, folder.name))[0])
            except FileNotFoundError:  # its turn to go came just now
                continue
            except (OSError, ValueError):
                passed_over.append(folder / f"{id_}.json")
    wanted = (
        item for item in items if (since is None or item.last_at >= since) and verdict in {None, item.verdict}
    )
    newest = sorted(wanted, key=lambda item: item.id, reverse=True)
    return Contents(tuple(newest), tuple(passed_over))


def find_item(root: Path, id_: str) -> ItemRecord:
    """Return the item with an id.

    Raises:
        MissingFileError: If there is none.
        ArtifactError: If its record is damaged.
    """
    if ITEM_ID.fullmatch(id_):
        for folder in _folders(root, None):
            try:
                return read_record(root, Place(id_, folder.name))[0]
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                raise ArtifactError(f"the record of item {id_} cannot be read: {error}; remove it") from error
    raise MissingFileError(
        f"there is no item {id_[:80]!r} in {root}; `guard quarantine list` names those there are"
    )


def read_image(root: Path, item: ItemRecord) -> np.ndarray:
    """Return the image of an item, in the model's layout and dtype as it was sent.

    Raises:
        MissingFileError: If it is gone.
        ArtifactError: If it is not what was put there.
    """
    path = image_path(root, Place(item.id, folder_of(item.model)))
    try:
        data = read_plain(path, item.bytes)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is gone: the oldest items go first; look again") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); remove it") from error
    if hashlib.sha256(data).hexdigest() != item.sha256:
        raise ArtifactError(f"{path}: expected SHA-256 {item.sha256[:16]}…; it was changed: remove the item")
    image = load_npy(data, str(path))
    if (image.dtype.str, image.shape) != (item.dtype, item.shape):
        raise ArtifactError(
            f"{path}: expected {item.dtype} of shape {item.shape}, got {image.dtype.str} of {image.shape}"
        )
    return image


def _folders(root: Path, model: str | None) -> list[Path]:
    if not root.is_dir():
        raise MissingFileError(
            f"{root} is not a folder; expected the one of the setting 'quarantine_dir' of `guard serve`"
        )
    folders = list(model_folders(root))
    return folders if model is None else [folder for folder in folders if folder.name == folder_of(model)]
