"""Queries without ground truth: what is asked of which video."""

from dataclasses import dataclass

from vmr_env.data.durations import SECONDS, is_seconds
from vmr_env.data.records import Rows, read_records
from vmr_env.data.rows import Qid, Row, identity_faults


@dataclass(frozen=True, slots=True)
class Query:
    """One sentence about one video.

    Attributes:
        qid: query id; 7 and "7" are the same query.
        vid: video id.
        query: the sentence.
        duration: length of the video in seconds.
    """

    qid: Qid
    vid: str
    query: str
    duration: float


def read_queries(rows: Rows) -> list[Query]:
    """Queries of a file (`.jsonl`, `.jsonl.gz`) or of rows with its fields, in order.

    Moments, where rows have them, are not looked at.

    Raises:
        DataError: all problems at once.
    """
    return read_records(rows, "queries", _query)


def _query(row: Row) -> Query | None:
    qid, vid, query, duration = row.qid(), row.text("vid"), row.text("query"), row.number_of("duration")
    if qid is None or vid is None or query is None or duration is None:
        return None
    for field, message in identity_faults(qid, vid, query):
        row.note(field, message)
    if not is_seconds(duration):
        row.note("duration", f"is {duration}; expected {SECONDS}")
    return Query(qid, vid, query, duration)
