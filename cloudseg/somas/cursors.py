"""Cursors: where the next page begins, which question it belongs to, and which version it stays with."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass

from cloudseg.errors import QueryError
from cloudseg.somas.filters import Value
from cloudseg.somas.requests import Query
from cloudseg.specs import canonical_json


@dataclass(frozen=True, slots=True)
class Cursor:
    """The place behind the last row of a page.

    Attributes
    ----------
    version
        Of the catalogue: paging stays with it, whatever is published meanwhile.
    question
        Digest of the question.
    soma_id, value
        Of the last row: its id, and its value in the column of the order.
    n_sent
        Rows of all pages so far.
    total
        Rows that the question finds, without its limit.
    """

    version: int
    question: str
    soma_id: int
    value: Value | None
    n_sent: int
    total: int

    def text(self) -> str:
        """Return it as it travels; made of letters that any URL takes."""
        row = [self.version, self.question, str(self.soma_id), self.value, self.n_sent, self.total]
        if isinstance(self.value, int):
            row[3] = {"whole": str(self.value)}
        return base64.urlsafe_b64encode(canonical_json(row).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read it.

        Raises
        ------
        QueryError
            If it is none of ours.
        """
        try:
            padded = text.encode("ascii") + b"=" * (-len(text) % 4)
            version, question, soma_id, value, n_sent, total = json.loads(
                base64.b64decode(padded, altchars=b"-_", validate=True)
            )
            if isinstance(value, dict):
                value = int(value["whole"])
            numbers = (version, n_sent, total)
            fine = all(type(each) is int and each >= 0 for each in numbers) and isinstance(question, str)
            if (
                not fine
                or not (value is None or isinstance(value, (int, float, str)))
                or isinstance(value, bool)
            ):
                raise ValueError(text)
            if (
                version < 1
                or not 0 <= int(soma_id) < 1 << 64
                or (type(value) is int and not 0 <= value < 1 << 64)
            ):
                raise ValueError(text)
            return cls(version, question, int(soma_id), value, n_sent, total)
        except (ValueError, TypeError, KeyError, binascii.Error, RecursionError) as error:
            raise QueryError(
                "cursor: this is none that a page came with; send `next` of the page before, unchanged, or none"
            ) from error


def question_of(asked: Query) -> str:
    """Return a digest of all that must stay the same from page to page."""
    kept = asked.model_dump(mode="json", exclude={"cursor", "page_rows", "version"}, fallback=str)
    return hashlib.sha256(canonical_json(kept).encode()).hexdigest()[:24]
