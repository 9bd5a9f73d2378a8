"""`llada-sft report`: where it writes, what it refuses, and who may ask its server."""

import http.client
import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llada_sft import cli
from llada_sft.errors import LaunchError
from llada_sft.report.command import write_report
from llada_sft.report.serve import ReportServer, is_this_machine, serve_until_interrupted
from tests.report_runs import START, write_run


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["llada-sft", "report", *map(str, arguments)])
    return cli.main()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs/a", "step,loss\n1,2.5\n", [START]).path


def test_a_page_is_written_into_the_run(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(monkeypatch, run) == 0
    assert capsys.readouterr().out == f"{run}/report.html\n"
    assert (run / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert not list(run.glob("*.partial"))


def test_a_page_of_several_runs_is_written_here(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_run(tmp_path / "runs/b", journal=[START]).path
    monkeypatch.chdir(tmp_path)
    assert report(monkeypatch, run, other) == 0
    assert (tmp_path / "report.html").is_file()
    assert report(monkeypatch, run, other, "--out", "both.html") == 0
    assert (tmp_path / "both.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "runs/none: no such run: neither a path, nor a name in runs"),
        (
            ["runs/a", "--out", "no/report.html"],
            "no/report.html: cannot be written: No such file or directory; name another file with"
            " --out",
        ),
        (["runs/a", "--out", "runs"], "--out runs: is a folder; name a file in it"),
        (["runs/a", "--out", "pipe"], "--out pipe: is not a regular file; name a file"),
        (["runs/a", "--out", "to_null"], "--out to_null: is not a regular file; name a file"),
        (["runs/a"] * 17 + ["--out", "x"], "report: at most 16 runs in one page, got 17"),
        (
            ["runs/a", "--serve", "70000"],
            "--serve 70000: must be from 0 to 65535; without a port a free one is used",
        ),
    ],
)
def test_a_mistake_is_one_line(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("to_null").symlink_to("/dev/null")
    assert report(monkeypatch, *arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"
    assert Path("pipe").is_fifo() and Path("to_null").is_symlink()


def test_a_failed_report_leaves_the_one_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llada_sft.run_dir import RunDir

    path = write_report([RunDir(run)])
    before = path.read_bytes()

    def fail(*arguments: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llada_sft.report.command.page_of", fail)
    assert report(monkeypatch, run) == 2
    assert path.read_bytes() == before


@pytest.fixture
def server() -> Iterator[ReportServer]:
    server = ReportServer(0, lambda: "<!DOCTYPE html>", lambda: json.dumps({"a": 1}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(
    server: ReportServer, path: str, headers: dict[str, str], method: str = "GET"
) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.getheaders())
    connection.close()
    return found


def test_the_page_and_its_data_are_served(server: ReportServer) -> None:
    host = {"Host": f"127.0.0.1:{server.server_port}"}
    status, content, headers = ask(server, f"/{server.token}/", host)
    assert (status, content) == (200, b"<!DOCTYPE html>")
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, content, headers = ask(server, f"/{server.token}/data.json", host)
    assert (status, content) == (200, b'{"a": 1}')
    unchanged = {**host, "If-None-Match": headers["ETag"]}
    assert ask(server, f"/{server.token}/data.json", unchanged)[:2] == (304, b"")


@pytest.mark.parametrize("path", ["/", "/wrong/", "/wrong/data.json", "/../../etc/passwd"])
def test_without_its_random_part_an_address_leads_nowhere(server: ReportServer, path: str) -> None:
    status, content, headers = ask(server, path, {"Host": "localhost"})
    assert (status, content) == (404, b"")
    assert server.token not in str(headers)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil", ""]
)
def test_another_name_of_this_machine_is_refused(server: ReportServer, host: str) -> None:
    assert ask(server, f"/{server.token}/", {"Host": host})[:2] == (403, b"")


def test_a_request_without_a_host_is_refused(server: ReportServer) -> None:
    assert ask(server, f"/{server.token}/", {})[0] == 403
    assert ask(server, f"/{server.token}/x", {"Host": "localhost"})[0] == 404
    assert ask(server, f"/{server.token}/", {"Host": "localhost"}, "POST")[0] == 501


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (["127.0.0.1:8000"], True),
        (["LOCALHOST"], True),
        (["localhost:9"], True),
        (["localhost", "localhost"], False),
        (["10.0.0.1"], False),
        ([], False),
    ],
)
def test_names_of_this_machine(hosts: list[str], expected: bool) -> None:
    assert is_this_machine(hosts) is expected


def test_the_server_listens_on_the_loopback_interface(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"


def test_a_port_in_use_is_one_line(server: ReportServer) -> None:
    with pytest.raises(LaunchError) as error:
        ReportServer(server.server_port, str, str)
    assert str(error.value) == (
        f"--serve {server.server_port}: Address already in use; without a port a free one is used"
    )


def test_ctrl_c_ends_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = ReportServer(0, str, str)

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "serve_forever", interrupt)
    serve_until_interrupted(server)
    out = capsys.readouterr().out
    assert out.startswith(f"{server.address}\nfrom another machine:  ssh -L {server.server_port}:")
