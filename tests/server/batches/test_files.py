"""Files as openai-python's client sees them, over the whole HTTP side."""

import openai
import pytest

from tests.server.api.scripted import Server, run
from tests.server.batches.served import Clock, client_of, serving


def test_a_file_is_kept_listed_and_deleted(tmp_path):
    async def test():
        async with serving(tmp_path) as (server, client):
            data = bytes(range(256)) * 4000
            file = await client.files.create(file=("a b.bin", data), purpose="assistants")
            assert (file.bytes, file.filename, file.purpose, file.status) == (
                len(data),
                "a b.bin",
                "assistants",
                "processed",
            )
            assert file.expires_at is None
            assert await client.files.retrieve(file.id) == file
            assert (await client.files.content(file.id)).content == data
            deleted = await client.files.delete(file.id)
            assert (deleted.id, deleted.deleted) == (file.id, True)
            with pytest.raises(openai.NotFoundError, match="There is no file"):
                await client.files.retrieve(file.id)
            assert server.batches.files.held == 0
            assert [path.name for path in (tmp_path / "files").iterdir()] == []

    run(test)


def test_lists_have_pages(tmp_path):
    async def test():
        async with serving(tmp_path) as (_, client):
            made = [(await client.files.create(file=(f"{i}", b"x"), purpose="batch")).id for i in range(5)]
            made.append((await client.files.create(file=("other", b"x"), purpose="evals")).id)
            assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
            assert [file.id async for file in client.files.list(limit=2, order="asc")] == made
            assert [file.id async for file in client.files.list(purpose="evals")] == made[-1:]
            page = await client.files.list(limit=2)
            assert page.has_more
            for wrong in ({"limit": 0}, {"order": "up"}, {"after": "file-1"}, {"purpose": "fun"}):
                with pytest.raises(openai.BadRequestError, match=next(iter(wrong))):
                    await client.files.list(**wrong)

    run(test)


def test_a_file_expires(tmp_path):
    async def test():
        async with serving(tmp_path, now=(clock := Clock())) as (server, client):
            file = await client.files.create(
                file=("a", b"x"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
            )
            assert file.expires_at == file.created_at + 3600
            clock.now = file.expires_at + 1
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(file.id)
            await server.batches._sweep()
            assert not list((tmp_path / "files").iterdir())
            for seconds in (3599, 30 * 24 * 3600 + 1, "soon"):
                with pytest.raises(openai.BadRequestError, match="seconds"):
                    after = {"anchor": "created_at", "seconds": seconds}
                    await client.files.create(file=("a", b"x"), purpose="batch", expires_after=after)

    run(test)


FORM = {"content-type": "multipart/form-data; boundary=xx"}
WHOLE = b'--xx\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--xx\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nabc\r\n'
OTHER = b'--xx\r\nContent-Disposition: form-data; name="colour"\r\n\r\nred\r\n'
BAD_UPLOADS = [
    (b"{}", {"content-type": "application/json"}, 415, "multipart/form-data"),
    (b"", {"content-type": "multipart/form-data"}, 415, "boundary"),
    (b"no form", FORM, 400, "not multipart"),
    (WHOLE + FILE[:-1], FORM, 400, "ends within"),
    (WHOLE + b"--xx--\r\n", FORM, 400, "`file` is missing"),
    (FILE + b"--xx--\r\n", FORM, 400, "`purpose` is missing"),
    (WHOLE + FILE + FILE + b"--xx--\r\n", FORM, 400, "`file` must be given once"),
    (WHOLE + OTHER + FILE + b"--xx--\r\n", FORM, 400, "colour"),
    (WHOLE.replace(b"batch", b"batch_output") + FILE + b"--xx--\r\n", FORM, 400, "`purpose` must be one of"),
    (WHOLE.replace(b"batch", b"b" * 2000) + FILE + b"--xx--\r\n", FORM, 400, "at most 1024 bytes"),
    (FILE.replace(b'; filename="f"', b"") + WHOLE + b"--xx--\r\n", FORM, 400, "filename"),
    (WHOLE + FILE.replace(b"abc", b"a" * 3000) + b"--xx--\r\n", FORM, 413, "2048 bytes (max_file_bytes)"),
    (WHOLE + FILE.replace(b"abc", b"a" * 90_000) + b"--xx--\r\n", FORM, 413, "max_file_bytes"),
]


@pytest.mark.parametrize(("body", "headers", "status", "told"), BAD_UPLOADS)
def test_what_is_no_upload_is_refused_and_leaves_nothing(tmp_path, body, headers, status, told):
    async def test():
        async with serving(tmp_path, max_file_bytes=2048) as (server, _):
            answer = await server.client.post("/v1/files", content=body, headers=headers)
            assert (answer.status_code, told in answer.json()["error"]["message"]) == (status, True), answer.text
            assert server.batches.files.held == 0
            assert not [*(tmp_path / "files").iterdir(), *(tmp_path / "begun").iterdir()]

    run(test)


def test_all_files_together_have_a_limit(tmp_path):
    async def test():
        async with serving(tmp_path, max_file_bytes=2048, max_stored_bytes=3000) as (_, client):
            first = await client.files.create(file=("a", b"x" * 2048), purpose="batch")
            with pytest.raises(openai.InternalServerError, match="max_stored_bytes"):
                await client.files.create(file=("a", b"x" * 1000), purpose="batch")
            await client.files.delete(first.id)
            await client.files.create(file=("a", b"x" * 1000), purpose="batch")

    run(test)


def test_without_a_folder_there_are_none():
    async def test():
        client = client_of(Server())
        for call in (
            client.files.list(),
            client.batches.list(),
            client.files.create(file=("a", b"x"), purpose="batch"),
        ):
            with pytest.raises(openai.NotFoundError, match="--data-dir"):
                await call

    run(test)


def test_a_folder_is_one_servers(tmp_path):
    async def test():
        async with serving(tmp_path):
            with pytest.raises(OSError, match="belongs to another server"):
                Server(data_dir=str(tmp_path))

    run(test)
