"""What a door is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from apflow.errors import BadRequest
from apflow.model.next_visit import Message, parse


@dataclass(frozen=True, eq=False)
class Notice:
    """An event as it came through a door.

    Attributes
    ----------
    message : `Message` or `None`
        None where it is not acceptable.
    place : `str`
        Where it was: ``topic[partition]@offset``, ``file:line``, a client's address.
    refusal : `str`
        Why it is not acceptable; empty where it is.
    kind : `str`
        ``nextVisit``, ``nextVisitCanceled`` or ``startIntegration``.
    record
        As it came, decoded: what can be kept as JSON.
    token
        The door's own.
    """

    message: Message | None
    place: str
    refusal: str = ""
    kind: str = ""
    record: Any = None
    token: Any = None


class Door(Protocol):
    """Where events come in."""

    def notices(self) -> Iterator[Notice]:
        """Events as they come; blocks, and ends where no more can come or when the door is closed.

        Raises
        ------
        ServiceError
            The service behind the door cannot be reached, and waiting does not mend it.
        """

    def done(self, notice: Notice) -> None:
        """Say that a notice, and each before it, is safely recorded or of no use."""

    def close(self) -> None:
        """End `notices`; may be called by any thread, more than once."""


def notice(kind: str, record: Any, place: str, token: Any = None) -> Notice:
    """A notice of a record; one that is not acceptable carries the reason."""
    try:
        return Notice(parse(kind, record), place, "", kind, record, token)
    except BadRequest as error:
        return Notice(None, place, str(error), kind, None, token)


def decode_json(text: bytes | str, what: str) -> Any:
    """A JSON document.

    Raises
    ------
    BadRequest
        It is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"{what} is no JSON: {str(error)[:120]}") from None
