"""A study in a store: which one is meant, what it says about itself, and the space that it searches."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from search.address import hide_password
from search.storage import Storage
from search.storage.batches import refuse_unfinished
from search.storage.documents import read_documents
from search.storage.reading import read_names, read_study_attrs
from spaces.errors import StudyError
from spaces.space import Space

_TESTED: Final = ("test", "within_noise")
_NEEDED = {"config", "float", "smallest_bytes", "versions", "workload"}


@dataclass(frozen=True)
class StoredStudy:
    """A study in a store, with its attributes."""

    id: int
    name: str
    attrs: Mapping[str, Any]


def pick_study(storage: Storage, name: str | None) -> StoredStudy:
    """The study of this name; without a name, the only one.

    Raises:
        StudyError: there is none, there are several to choose from, or it is not one of ours.
    """
    shown = hide_password(storage.url)

    def read(connection: Connection) -> StoredStudy:
        names = read_names(connection)
        if not names:
            raise StudyError(f"{shown} holds no study yet: `slimfront launch CONFIG` starts one")
        listed = ", ".join(sorted(names))
        if name is None and len(names) > 1:
            raise StudyError(f"{shown} holds {len(names)} studies, name one of them: {listed}")
        if name is not None and name not in names:
            raise StudyError(f"{shown} holds no study {name!r}; it holds {listed}")
        found = next(iter(names)) if name is None else name
        return StoredStudy(names[found], found, read_study_attrs(connection, names[found]))

    study = storage.run("finding the study", read, write=False)
    refuse_unfinished(study.name, study.attrs)
    if missing := _NEEDED - study.attrs.keys():
        raise StudyError(
            f"study {study.name!r} in {shown} was not started by `slimfront launch`, or did not get far enough: it "
            f"lacks {', '.join(sorted(missing))}; launch its config again, or name another study"
        )
    return study


def read_tested(connection: Connection, study_id: int, attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a study's front on the test split, as `search.honest.held_back` gives it.

    Args:
        connection: to the store.
        study_id: the study's id in it.
        attrs: the study's attributes, where earlier versions kept it.
    """
    found = read_documents(connection, study_id, _TESTED)
    return {key: found.get(key, attrs.get(key, {})) for key in _TESTED}


def load_tested(storage: Storage, study_id: int) -> dict[str, Any]:
    """What is known of a study's front on the test split; to change it, use `Storage.set_documents`.

    Raises:
        StudyError: the database failed.
    """

    def read(connection: Connection) -> dict[str, Any]:
        return read_tested(connection, study_id, read_study_attrs(connection, study_id))

    return storage.run("reading the scores on the test split", read, write=False)


def space_of_study(storage: Storage, study: StoredStudy) -> Space:
    """The space that a study searches.

    Raises:
        StudyError: an earlier version made the study: its space is not there, or written in another way.
    """
    document: Any = storage.load_document(study.id, "space")
    try:
        return Space.read(document)
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(
            f"study {study.name!r} was made by an earlier version of Slimfront; search again under another name"
        ) from error
