"""What keys have used: added up, written, read by hour and day, and not lost when it cannot be written for a while."""

import asyncio
import base64
import sqlite3
import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from server.api.accounts.usage import _page, query_of
from server.errors import InvalidRequest
from server.keys.usage import COUNTS, HOUR, Use, UseBook
from server.keys.usage_store import UsageError, UsageQuery, UsageStore

DAY = 24 * HOUR
ALL = UsageQuery(start=0, end=10 * DAY, bucket=HOUR, most=100)


def row(hour, key, model, *counts):
    return (hour * HOUR, key, model, *counts, *[0] * (len(COUNTS) - len(counts)))


@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.sampled_from("ab"), st.sampled_from(["", "m"]), st.integers(0, 9)))
)
def test_pages_add_up_to_all_that_was_written(rows):
    store = UsageStore(None, COUNTS)
    store.add(row(*each) for each in rows)
    for bucket in (HOUR, DAY):
        expected = {}
        for hour, key, model, count in rows:
            place = (hour * HOUR // bucket * bucket, key, model)
            expected[place] = expected.get(place, 0) + count
        found, after = [], None
        while page := store.read(UsageQuery(start=0, end=10 * DAY, bucket=bucket, most=3, after=after)):
            found += page
            after = page[-1][:3]
        assert [each[:4] for each in found] == [(*place, count) for place, count in sorted(expected.items())]
    mine = store.read(UsageQuery(start=20 * HOUR, end=40 * HOUR, bucket=HOUR, most=100, key="a", model="m"))
    assert {each[0] // HOUR for each in mine} == {
        hour for hour, key, model, _ in rows if 20 <= hour < 40 and (key, model) == ("a", "m")
    }
    store.close()


def test_the_file_is_private_stays_and_is_shared(tmp_path):
    path = str(tmp_path / "use.db")

    async def used(counts):
        book = UseBook(path, clock=lambda: 2.5 * HOUR)
        book.add("a", "m", Use(requests=counts))
        book.add("a", "m", Use(requests=1, prompt_tokens=7))
        found = await book.read(ALL)
        await book.close()
        return found

    assert asyncio.run(used(1)) == [row(2, "a", "m", 2, 0, 0, 7)]
    assert asyncio.run(used(5)) == [row(2, "a", "m", 8, 0, 0, 14)]
    assert stat.S_IMODE((tmp_path / "use.db").stat().st_mode) == 0o600
    first, second = UsageStore(path, COUNTS), UsageStore(path, COUNTS)
    first.add([row(2, "a", "m", 1)])
    second.add([row(2, "a", "m", 1)])
    assert first.read(ALL)[0][3] == 10
    first.close()
    second.close()


def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path):
    (tmp_path / "text").write_text("no database, and long enough to be none " * 40)
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 9")
    newer.close()
    for name, why in (("text", "not a database"), ("newer", "version 9"), ("none/db", "No such file")):
        with pytest.raises(UsageError, match=f"{name}.*{why}"):
            UseBook(str(tmp_path / name))


def test_what_cannot_be_written_is_kept_and_written_later(caplog):
    async def body():
        failures = []
        book = UseBook(None, lambda: failures.append(1), clock=lambda: 0.0)
        add, broken = book._store.add, True

        def sometimes(rows):
            if broken:
                raise sqlite3.OperationalError("database or disk is full")
            add(rows)

        book._store.add = sometimes
        for _ in range(3):
            book.add("a", "m", Use(requests=1))
            await book.flush()
        book.add("b", "m", Use(errors=2))
        assert len(failures) == 3 and caplog.text.count("disk is full") == 1
        broken = False
        assert await book.read(ALL) == [row(0, "a", "m", 3), row(0, "b", "m", 0, 2)]
        await book.close()

    asyncio.run(body())


def test_a_write_that_is_given_up_loses_nothing():
    async def body():
        book, release = UseBook(None, clock=lambda: 0.0), threading.Event()
        busy = book._thread.submit(release.wait, 60)
        book.add("a", "m", Use(requests=1))
        flush = asyncio.create_task(book.flush())
        await asyncio.sleep(0)
        flush.cancel()
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(flush, return_exceptions=True)
        assert busy.result() and await book.read(ALL) == [row(0, "a", "m", 1)]
        await book.close()

    asyncio.run(body())


def asked(text):
    return query_of(QueryParams(text), 100 * DAY + 5.5)


def test_what_parameters_ask_for():
    assert asked("") == UsageQuery(start=93 * DAY, end=100 * DAY + 6, bucket=DAY, most=101)
    assert asked("bucket=hour&start=3700&end=1970-01-02&limit=5&model=m") == UsageQuery(
        start=HOUR, end=DAY, bucket=HOUR, most=6, model="m"
    )
    assert asked("start=1970-01-01T01:00:00+01:00&end=9").start == 0, "a plus in an address stands for a space"
    assert asked("key=b").key == "b"
    assert asked("page=" + _page((3, "ä", ""))).after == (3, "ä", "")


@pytest.mark.parametrize(
    ("text", "param", "said"),
    [
        ("bucket=week", "bucket", 'must be hour or day, got "week"'),
        ("start=yesterday", "start", 'must be Unix seconds, or a date .*, got "yesterday"'),
        ("end=99999999999999999999", "end", "must be Unix seconds"),
        ("start=5&end=5", "start", r"must be before `end` \(5\), got 5"),
        ("limit=0", "limit", 'must be a whole number from 1 to 1000, got "0"'),
        ("limit=1e3", "limit", "must be a whole number"),
        ("page=" + base64.urlsafe_b64encode(b'[0, "\\ud800", ""]').decode(), "page", "must be the `next_page`"),
        ("page=x", "page", "must be the `next_page` of an answer"),
        ("page=" + "W10=", "page", "must be the `next_page`"),
        ("page=ä", "page", "must be the `next_page`"),
        ("pages=1", "pages", "unknown parameter"),
        ("limit=1&limit=2", "limit", "must be given once, got it 2 times"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(text, param, said):
    with pytest.raises(InvalidRequest, match=said) as caught:
        asked(text)
    assert caught.value.param == param
