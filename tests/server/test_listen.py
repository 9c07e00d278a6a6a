"""Where a server listens: both loopbacks, all addresses of both kinds, a Unix socket's file and whose it is."""

import contextlib
import os
import socket
import stat
from pathlib import Path

import pytest

from configs.settings import Settings
from server.listen import ListenError, listen, listen_unix, listeners_of

pytestmark = pytest.mark.processes


def machine_has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


needs_ipv6 = pytest.mark.skipif(not machine_has_ipv6(), reason="this machine has no ::1")


def reaches(*address) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=5):
        return True
    return False


@pytest.fixture
def path(tmp_path_factory) -> str:
    """Short: a Unix socket's path has at most 107 bytes."""
    return str(tmp_path_factory.mktemp("s") / "x.sock")


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(path)
        return True
    return False


@needs_ipv6
def test_localhost_is_both_loopbacks_at_one_port():
    with listen("localhost", 0) as listeners:
        assert len(listeners.sockets) == 2 and listeners.authority == f"localhost:{listeners.port}"
        port = listeners.port
        assert reaches("127.0.0.1", port) and reaches("::1", port)
    assert not reaches("127.0.0.1", port)


@needs_ipv6
def test_localhost_of_which_somebody_else_has_a_half_is_refused():
    with listen("::1", 0) as other:
        assert other.authority == f"[::1]:{other.port}"
        with pytest.raises(ListenError, match=rf"::1:{other.port}: Address already in use"):
            listen("localhost", other.port)
        assert not reaches("127.0.0.1", other.port)


def test_localhost_is_one_loopback_where_there_is_no_other(monkeypatch):
    monkeypatch.setattr("server.listen._LOOPBACKS", ("127.0.0.1", "2001:db8::1"))
    with listen("localhost", 0) as listeners:
        assert len(listeners.sockets) == 1 and reaches("127.0.0.1", listeners.port)
    monkeypatch.setattr("server.listen._LOOPBACKS", ("192.0.2.1", "127.0.0.1"))
    with pytest.raises(ListenError, match="no address of this machine"):
        listen("localhost", 0)


@needs_ipv6
def test_two_colons_are_all_addresses_of_both_kinds():
    with listen("::", 0) as listeners:
        assert reaches("::1", listeners.port) and reaches("127.0.0.1", listeners.port)
        assert listeners.authority == f"localhost:{listeners.port}"


@pytest.mark.parametrize(("access", "mode"), [("user", 0o600), ("group", 0o660), ("all", 0o666)])
def test_a_unix_socket_has_the_permissions_it_is_given_and_goes_with_its_server(path, access, mode):
    with listeners_of(Settings(uds=path, uds_access=access)) as listeners:
        assert stat.S_IMODE(os.stat(path).st_mode) == mode
        assert connects(path) and listeners.authority == "localhost"
    assert not os.path.exists(path)


def test_the_file_of_a_server_that_was_killed_is_replaced(path):
    killed = listen_unix(path, 0o600)
    killed.sockets[0].close()  # its file stays
    assert os.path.exists(path) and not connects(path)
    with listen_unix(path, 0o600):
        killed.close()  # late, and of a file that is another's by now
        assert connects(path)


def test_the_socket_of_a_server_that_lives_is_not_taken(path):
    with listen_unix(path, 0o600):
        with pytest.raises(ListenError, match="a server listens there already"):
            listen_unix(path, 0o600)
        assert connects(path)


def test_what_is_no_socket_is_never_removed(path):
    Path(path).write_text("mine")
    with pytest.raises(ListenError, match="is no socket"):
        listen_unix(path, 0o600)
    assert Path(path).read_text() == "mine"


@pytest.mark.parametrize("path", ["/nowhere/x.sock", "/tmp/" + "x" * 120])
def test_a_path_where_no_socket_can_be_is_refused_with_its_cause(path):
    with pytest.raises(ListenError, match=r"--uds /.*(No such file|too long).*107 bytes"):
        listen_unix(path, 0o600)
