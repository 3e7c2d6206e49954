"""Where webhooks may be sent: every address of a host is checked, and the connection goes to one that was."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from webhook_receiver import Receiver, receiving

from service.adapters import receivers
from service.adapters.receivers import NotAllowed, Undelivered, check, post

LOOPBACK = (ip_network("127.0.0.0/8"),)
PUBLIC = "93.184.216.34"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture
def resolves(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes names resolve to given addresses, one tuple for each look-up; gives the names that were looked up."""

    def install(*answers: tuple[str, ...]) -> list[str]:
        asked: list[str] = []
        original = socket.getaddrinfo

        def resolve(host: str, port: int, *given: Any, **named: Any) -> list[Any]:
            if host[0].isdigit() or ":" in host:
                return original(host, port, *given, **named)
            asked.append(host)
            addresses = answers[min(len(asked), len(answers)) - 1]
            return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        return asked

    return install


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.1.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "fec0::1", "ff0e::1", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "::10.0.0.1",
        "2002:0a00:0001::1", "2001:db8::1", "fe80::1%eth0",
    ],
)  # fmt: skip
def test_a_public_name_with_an_address_that_is_not_public_is_refused(resolves, address):
    """Also where another of its addresses is public: the connection could go to either."""
    resolves((PUBLIC, address))
    with pytest.raises(NotAllowed, match=r"which is not public.*RCMAE_WEBHOOK_PRIVATE_NETWORKS"):
        check("https://hooks.example.org/x", ())


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946", "::ffff:93.184.216.34"])
def test_a_name_with_public_addresses_is_accepted(resolves, address):
    resolves((address,))
    assert len(check("https://hooks.example.org/x", ())) == 1


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::ffff:7f00:1]", "localhost"])
def test_other_spellings_of_this_machine_are_refused(host):
    with pytest.raises(NotAllowed):
        check(f"https://{host}/x", ())


def test_a_network_that_the_setting_names_is_allowed_and_only_there_http(resolves):
    resolves(("10.1.2.3",))
    assert check("http://hooks.example.org/x", (ip_network("10.1.0.0/16"),))
    with pytest.raises(NotAllowed):
        check("http://hooks.example.org/x", (ip_network("10.2.0.0/16"),))
    resolves(("::ffff:10.1.2.3",))
    assert check("http://hooks.example.org/x", (ip_network("10.1.0.0/16"),))
    resolves(("10.1.2.3", PUBLIC))
    with pytest.raises(NotAllowed, match="use https"):
        check("http://hooks.example.org/x", (ip_network("10.1.0.0/16"),))


def test_the_connection_goes_to_the_address_that_was_checked(receiver, resolves):
    """The name is looked up once: one that has another address a moment later leads nowhere else."""
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    asked = resolves(("127.0.0.1",), ("10.255.255.1",))
    answer = post(f"http://hooks.example.org:{port}/x", {"A": "b"}, b"{}", LOOPBACK)
    assert answer.status == 204
    assert asked == ["hooks.example.org"]
    assert receiver.received[0].headers["host"] == f"hooks.example.org:{port}"


def test_a_name_that_was_public_when_the_webhook_was_made_and_is_not_any_more_gets_nothing(receiver, resolves):
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    resolves((PUBLIC,), ("127.0.0.1",))
    url = f"https://hooks.example.org:{port}/x"
    check(url, ())
    with pytest.raises(NotAllowed, match=r"127\.0\.0\.1"):
        post(url, {}, b"{}", ())
    assert receiver.received == []


def test_neither_a_proxy_of_the_environment_nor_a_redirect_is_followed(receiver, monkeypatch):
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        receiver.answer(307, {"Location": proxy.url})
        assert post(receiver.url, {}, b"{}", LOOPBACK).status == 307
        assert len(receiver.received) == 1
        assert proxy.received == []


def test_the_next_address_is_tried_where_one_does_not_answer(receiver, resolves):
    port = receiver.url.rpartition(":")[2].partition("/")[0]
    resolves(("127.0.0.9", "127.0.0.1"))  # the receiver listens at the second one alone
    assert post(f"http://hooks.example.org:{port}/x", {}, b"{}", LOOPBACK).status == 204


def test_an_answer_that_comes_a_byte_at_a_time_ends_with_the_time_for_the_whole(monkeypatch):
    monkeypatch.setattr(receivers, "TIMEOUT_S", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for byte in b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000:
                    try:
                        connection.send(bytes([byte]))
                    except OSError:
                        return
                    if ended.wait(0.1):
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(Undelivered, match=r"no whole answer within 0\.6 s"):
            post(f"http://127.0.0.1:{server.getsockname()[1]}/x", {}, b"{}", LOOPBACK)
        took_s = time.monotonic() - began
        ended.set()
        thread.join()
    assert took_s < 3


def test_of_an_endless_answer_only_the_beginning_is_read(receiver):
    receiver.answer(200, {}, b"y" * 10_000_000)
    assert post(receiver.url, {}, b"{}", LOOPBACK).body == b"y" * receivers.READ_BYTES


def test_trouble_is_told_in_words(receiver):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(Undelivered, match="refused"):
        post(f"http://127.0.0.1:{free}/x", {}, b"{}", LOOPBACK)
    with pytest.raises(Undelivered, match=r"SSL|TLS"):
        post(receiver.url.replace("http:", "https:"), {}, b"{}", LOOPBACK)


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of hooks.example.org, and its key."""
    from cryptography import x509  # noqa: PLC0415 - which takes long to import
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hooks.example.org")])
    moment = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(7).not_valid_before(moment).not_valid_after(moment + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.org")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    certificate, secret = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


def test_the_certificate_must_be_that_of_the_name_and_not_of_the_address(certified, resolves, monkeypatch):
    certificate, key = certified
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    receivers._tls.cache_clear()
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    try:
        with receiving(context) as receiver:
            resolves(("127.0.0.1",))
            port = receiver.url.rpartition(":")[2].partition("/")[0]
            assert post(f"https://hooks.example.org:{port}/x", {}, b"{}", LOOPBACK).status == 204
            with pytest.raises(Undelivered, match="CERTIFICATE_VERIFY_FAILED"):
                post(f"https://other.example.org:{port}/x", {}, b"{}", LOOPBACK)
        assert names[0] == "hooks.example.org"
    finally:
        receivers._tls.cache_clear()
