"""Usage in files on a web server and in an object store, read by DuckDB's own extension httpfs.

These tests run where DuckDB has httpfs installed (INSTALL httpfs, once) and openssl is there to
make a certificate; those of the object store need moto[server], which is a small S3 of its own.
"""

from __future__ import annotations

import csv
import io
import shutil
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pytest
from test_usage_sources_files_engine import extensions_installed

from usage_sources.contract import MIDNIGHT, UsageEvent, UsageSourceContract, close, event, query
from usage_sources.files import FilesSource
from usage_sources.files.engine import Engine
from usage_sources.files.sql import literal
from worker.errors import SourceInvalid, SourceUnavailable

if not extensions_installed():
    pytest.skip("no URLs to test: DuckDB's httpfs is not installed", allow_module_level=True)
if shutil.which("openssl") is None:
    pytest.skip("no URLs to test: openssl is not installed", allow_module_level=True)

COLUMNS: dict[str, Any] = {
    "subject_column": "subject",
    "time_column": "at",
    "time_format": "iso",
    "metric_column": "metric",
    "quantity_column": "quantity",
    "unique_column": "visitor",
    "allow_network": True,
}


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine's loopback, and its key beside it."""
    folder = tmp_path_factory.mktemp("tls")
    made = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key -out cert"
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", *made.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder / "cert"


@pytest.fixture
def _trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let DuckDB trust our certificate, as it does those that the machine knows."""
    reach_out = Engine._reach_out

    def trusting(self: Engine, connection: Any) -> None:
        reach_out(self, connection)
        connection.execute(f"SET GLOBAL ca_cert_file = {literal(str(certificate))}")

    monkeypatch.setattr(Engine, "_reach_out", trusting)


def written(events: Sequence[UsageEvent]) -> str:
    """Write events as CSV."""
    out = io.StringIO()
    rows = csv.writer(out)
    rows.writerow(["subject", "metric", "at", "quantity", "visitor", "region"])
    for e in events:
        quantity = "" if e.quantity is None else str(e.quantity)
        rows.writerow([e.subject, e.metric, e.at.isoformat(), quantity, e.unique, e.region])
    return out.getvalue()


class _Files(SimpleHTTPRequestHandler):
    """Gives a folder's files, one after the other; stands still where it is told to."""

    stands_still: threading.Event | None = None
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        """Give a file."""
        self.asked.append(self.path)
        if self.stands_still is not None:
            self.stands_still.wait(60)
        super().do_GET()

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""


@pytest.fixture
def web(certificate: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a web server over the test's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Files, directory=str(tmp_path)))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, certificate.with_name("key"))
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("_trusted")
def test_files_are_read_from_a_web_server(web: str, tmp_path: Path) -> None:
    """CSV and Parquet behind https:// count as on this disk, with sizes and times in the notes."""
    (tmp_path / "usage.csv").write_text(written([event(MIDNIGHT), event(MIDNIGHT, subject="S-2")]))
    duckdb.execute(f"COPY (FROM '{tmp_path}/usage.csv') TO '{tmp_path}/usage.parquet'").fetchall()
    for name, form in (("usage.csv", "iso"), ("usage.parquet", "native")):
        given = {**COLUMNS, "time_format": form, "path": f"{web}/{name}"}
        source = FilesSource(**given, watermark_lag_seconds=0.0)
        tally, unknown = source.count([query(), query("2", subject="S-3")])
        assert tally.value == 1
        assert unknown.value is None
        size = (tmp_path / name).stat().st_size
        assert f"{web}/{name}: {size} bytes, changed 2" in tally.evidence.notes[0]
        assert tally.evidence.watermark is not None
        close(source)


@pytest.mark.usefixtures("_trusted")
def test_a_web_server_has_no_patterns_and_may_lack_a_file(web: str) -> None:
    """A pattern is refused, for a web server lists nothing; what is not there may come."""
    for name, error in (("*.csv", SourceInvalid), ("gone.csv", SourceUnavailable)):
        source = FilesSource(**COLUMNS, path=f"{web}/{name}")
        with pytest.raises(error):
            source.count([query()])
        close(source)


def test_a_server_that_cannot_prove_its_name_is_not_read(web: str, tmp_path: Path) -> None:
    """A certificate that this machine does not trust is refused."""
    (tmp_path / "usage.csv").write_text(written([event(MIDNIGHT)]))
    source = FilesSource(**COLUMNS, path=f"{web}/usage.csv")
    with pytest.raises(SourceUnavailable, match="certificate"):
        source.count([query()])
    close(source)


@pytest.mark.usefixtures("_trusted")
def test_a_web_server_that_stands_still_is_given_up(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout holds, although DuckDB waits 30 s for each of four requests by itself."""
    (tmp_path / "usage.csv").write_text(written([event(MIDNIGHT)]))
    released = threading.Event()
    monkeypatch.setattr(_Files, "stands_still", released)
    monkeypatch.setattr(_Files, "asked", [])
    source = FilesSource(**COLUMNS, path=f"{web}/usage.csv", timeout_seconds=1.0)
    began_at = time.monotonic()
    with pytest.raises(SourceUnavailable):
        source.count([query()])
    assert time.monotonic() - began_at < 10
    assert _Files.asked == ["/usage.csv"]
    released.set()
    close(source)


class Store:
    """An object store of our own."""

    def __init__(self, client: Any, port: int, process: subprocess.Popen[bytes]) -> None:
        self.client = client
        self.process = process
        self.settings = COLUMNS | {
            "s3_key_id": "AK",
            "s3_secret": "SK",
            "s3_region": "eu-west-1",
            "s3_endpoint": f"localhost:{port}",
        }

    def put(self, name: str, events: Sequence[UsageEvent]) -> None:
        """Store events as one object."""
        self.client.put_object(Bucket="usage", Key=name, Body=written(events).encode())

    def clear(self) -> None:
        """Take everything away."""
        for found in self.client.list_objects_v2(Bucket="usage").get("Contents", []):
            self.client.delete_object(Bucket="usage", Key=found["Key"])


@pytest.fixture(scope="module")
def store(certificate: Path) -> Iterator[Store]:
    """A small S3, with one empty bucket."""
    boto3 = pytest.importorskip("boto3", reason="no object store: moto[server] is not installed")
    pytest.importorskip("moto.server", reason="no object store: moto[server] is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as free:
        port = free.server_port
    tls = ["-c", str(certificate), "-k", str(certificate.with_name("key"))]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), *tls],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    client = boto3.client(
        "s3",
        endpoint_url=f"https://localhost:{port}",
        aws_access_key_id="AK",
        aws_secret_access_key="SK",
        region_name="eu-west-1",
        verify=str(certificate),
    )
    try:
        until = time.monotonic() + 60
        while True:
            try:
                where = {"LocationConstraint": "eu-west-1"}
                client.create_bucket(Bucket="usage", CreateBucketConfiguration=where)
            except Exception:  # noqa: BLE001 - not up yet
                assert time.monotonic() < until, "moto is not up within 60 s"
                time.sleep(0.2)
            else:
                break
        yield Store(client, port, process)
    finally:
        client.close()
        process.terminate()
        process.wait(30)


@pytest.mark.usefixtures("_trusted")
class TestObjectStore(UsageSourceContract):
    """CSV objects that a pattern finds, one per event and one that holds none."""

    @pytest.fixture(autouse=True)
    def _know_store(self, store: Store) -> None:
        self._store = store

    def source_with(self, events: Sequence[UsageEvent], tmp_path: Path) -> FilesSource:
        """Store the events in three objects."""
        self._store.clear()
        for number in range(3):
            self._store.put(f"2024/05/{number}.csv", events[number::3])
        return FilesSource(**self._store.settings, path="s3://usage/2024/**/*.csv")

    def source_down(self, tmp_path: Path) -> FilesSource:
        """Ask a port where nobody listens."""
        away = {**self._store.settings, "s3_endpoint": "localhost:1"}
        return FilesSource(**away, path="s3://usage/*.csv", timeout_seconds=1.0)


@pytest.mark.usefixtures("_trusted")
def test_what_the_store_has_now_is_counted(store: Store) -> None:
    """A new, a replaced and a deleted object each change the next count of a warm source."""
    store.clear()
    store.put("o'dd/ä b.csv", [event(MIDNIGHT)])
    source = FilesSource(**store.settings, path="s3://usage/**/*.csv")
    assert [tally.value for tally in source.count([query()])] == [1]
    store.put("2.csv", [event(MIDNIGHT.astimezone(UTC))] * 2)
    assert [tally.value for tally in source.count([query()])] == [3]
    store.put("2.csv", [event(MIDNIGHT)] * 4)
    assert [tally.value for tally in source.count([query()])] == [5]
    store.client.delete_object(Bucket="usage", Key="2.csv")
    assert [tally.value for tally in source.count([query()])] == [1]
    close(source)


@pytest.mark.usefixtures("_trusted")
def test_an_object_that_two_patterns_find_is_refused(store: Store) -> None:
    """What would be counted twice is named."""
    store.clear()
    store.put("a.csv", [event(MIDNIGHT)])
    source = FilesSource(**store.settings, path=("s3://usage/*.csv", "s3://usage/a.csv"))
    with pytest.raises(SourceInvalid, match="would be counted twice"):
        source.count([query()])
    close(source)
