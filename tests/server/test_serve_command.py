"""``cloudseg serve`` and ``cloudseg link`` as a person runs them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest

from cloudseg import Somas
from cloudseg.geometry import Box
from cloudseg.server.app import listen
from cloudseg.server.neuroglancer_client import client_folder, mended_script
from cloudseg.somas.store import publish, write_version
from cloudseg.testing.somas import SPEC, soma_table
from cloudseg.volumes import VolumeInfo, create_volume, open_objects
from cloudseg_viewer.links import DEFAULT_SERVER, link_for_root, state_of

INFO = VolumeInfo(bounds=Box((0, 0, 0), (40, 40, 40)), voxel_size_nm=(8, 8, 8), chunk_shape=(32, 32, 32))

PROGRAM = [sys.executable, "-u", "-c", "from cloudseg.cli.main import main; main()"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with an image."""
    root = tmp_path_factory.mktemp("serve") / "run"
    data = np.random.default_rng(0).integers(50, 200, INFO.shape, dtype=np.uint8)
    create_volume(root / "image", INFO).write(INFO.bounds, np.asfortranarray(data))
    return root


def cloudseg(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def fetch(url: str) -> tuple[str, bytes]:
    with urllib.request.urlopen(url, timeout=20) as response:
        return response.headers.get_content_type(), response.read()


@pytest.fixture(scope="module")
def served(root):
    """A running server on a free port, and what it printed first."""
    process = subprocess.Popen(
        [*PROGRAM, "serve", str(root), f"{root}/image", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline().strip() for _ in range(4)]
        yield process, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_serve_prints_a_link_for_each_root_that_works_at_once(served, root):
    _, lines = served
    assert lines[0] == f"file://{root}"
    assert lines[2] == f"file://{root}/image"
    for url in (lines[1], lines[3]):
        parts = urlsplit(url)
        kind, page = fetch(f"{parts.scheme}://{parts.netloc}{parts.path}")
        assert kind == "text/html"
        assert b"<title>neuroglancer</title>" in page
        source = state_of(url)["layers"][0]["source"].removesuffix("|neuroglancer-precomputed:")
        assert json.loads(fetch(source + "info")[1])["type"] == "image"


def test_every_file_of_the_client_comes_with_its_type(served):
    base = "http://" + urlsplit(served[1][1]).netloc
    page = fetch(f"{base}/v/0/")[1].decode()
    scripts = [part.split('"')[0] for part in page.split('src="')[1:]]
    assert len(scripts) > 2
    for name in scripts:
        assert fetch(f"{base}/v/0/{name}")[0] == "application/javascript"
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{base}/v/0/nothing.js")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        fetch(f"{base}/v/0/..%2f__init__.py")


def test_the_first_page_leads_to_the_links(served, root):
    url = served[1][1]
    kind, page = fetch("http://" + urlsplit(url).netloc + "/")
    assert kind == "text/html"
    assert f"file://{root}</a>".encode() in page
    assert url.replace("&", "&amp;").replace("'", "&#x27;").encode() in page


def test_a_link_made_elsewhere_fits_the_server(served, root):
    base = "http://" + urlsplit(served[1][1]).netloc
    assert cloudseg("link", str(root), "--server", base).stdout.strip() == served[1][1]


def test_ctrl_c_ends_the_server_cleanly_though_a_viewer_is_connected(served):
    process, lines = served
    stream = urllib.request.urlopen("http://" + urlsplit(lines[1]).netloc + "/events/0", timeout=20)
    assert stream.readline() == b": ok\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 0
    stream.close()
    assert "Traceback" not in process.stderr.read()


def test_link_of_local_data_says_what_must_run(root):
    result = cloudseg("link", str(root))
    assert result.returncode == 0
    assert result.stdout.strip() == link_for_root(str(root))
    assert result.stdout.startswith(f"{DEFAULT_SERVER}/v/0/#!")
    assert f"cloudseg serve {root}" in result.stderr


def test_link_as_json_is_one_object(root):
    answer = json.loads(cloudseg("link", str(root), "--json").stdout)
    assert answer["server"] == DEFAULT_SERVER
    assert answer["state"] == state_of(answer["link"])


@pytest.mark.parametrize("command", [["link"], ["serve", "--port", "0"]])
def test_a_root_with_nothing_in_it_is_one_sentence_and_an_exit_code(tmp_path, command):
    result = cloudseg(*command, str(tmp_path))
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: no volume lies at file://{tmp_path}")
    assert "Traceback" not in result.stderr


def test_a_wrong_server_is_one_sentence_and_an_exit_code(root):
    result = cloudseg("link", str(root), "--server", "localhost")
    assert result.returncode == 2
    assert "a server is written http://host:port" in result.stderr


def test_answers_do_not_wait_for_acknowledgements():
    """Headers and body go out in two packets: with Nagle's algorithm the second waits 40 ms for the first."""

    async def accepted_with_nodelay(sock: socket.socket) -> int:
        found = asyncio.get_running_loop().create_future()

        async def took(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            here = writer.get_extra_info("socket")
            found.set_result(here.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(took, sock=sock):
            _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
            answer = await found
            writer.close()
            await writer.wait_closed()
            return answer

    # In a thread of its own: a browser of an earlier test may have left a running loop in this one.
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(lambda: asyncio.run(accepted_with_nodelay(listen("127.0.0.1", 0))))
        assert done.result(timeout=60) == 1


def test_looking_at_results_imports_nothing_heavy():
    program = (
        "import sys; import cloudseg.server.app, cloudseg.cli.serve, cloudseg.cli.link, cloudseg_viewer.roots;"
        "heavy = {'torch', 'taskqueue', 'igneous', 'cloudvolume', 'numba', 'scipy', 'neuroglancer', 'tornado'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_catalogue_alone_is_served_and_says_how_to_ask_it(tmp_path):
    objects = open_objects(f"file://{tmp_path}")
    write_version(objects, soma_table(7), SPEC, version=1)
    publish(objects, 1)
    process = subprocess.Popen(
        [*PROGRAM, "serve", str(tmp_path), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline().strip() for _ in range(2)]
        assert lines[0] == f"file://{tmp_path}"
        url = lines[1].split('"')[1]
        assert lines[1] == f'Somas("{url}", dataset="made-up")'
        assert Somas(url).count(tombstones=True) == 7
    finally:
        process.kill()
        process.communicate()


def test_the_clients_script_is_mended_in_one_place():
    (script,) = client_folder().glob("main.*.js")
    before, after = script.read_bytes(), mended_script(script)
    # Neuroglancer sets the field so a moment later; until then it may write a link, and loses a layer over it.
    assert before.count(b'localAnnotationRelationships=["segments"];') == 0
    assert after.count(b'localAnnotationRelationships=["segments"];') == 1
    assert len(after) == len(before) + len(b'=["segments"]')
