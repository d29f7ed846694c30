"""The tutorial runs as it stands, and its comments come true."""

from __future__ import annotations

import re

from cloudseg import Somas
from cloudseg.server.access import Access
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets


def test_every_block_of_the_tutorial_runs(repository, tmp_path):
    text = (repository / "docs" / "query.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 7
    scope: dict[str, object] = {}
    for block in blocks:
        exec(block.replace("/tmp/cloudseg-tutorial", str(tmp_path)), scope)
    somas = scope["somas"]
    assert isinstance(somas, Somas)
    assert somas.info()["n_somas"] == 5000
    assert scope["df"].attrs["total"] == len(scope["df"]) > 100
    assert str(scope["link"]).startswith("https://")
    assert len(somas.opinions()) == 1
    # What it says of a server: the same answers.
    with running(create_app([], datasets=Datasets([str(tmp_path)]), access=Access())) as url:
        assert Somas(url).count(by=["region", "side"]).equals(somas.count(by=["region", "side"]))


def test_the_commands_of_the_tutorial_exist(repository):
    from cloudseg.cli.main import COMMANDS, cli

    text = (repository / "docs" / "query.md").read_text()
    named = set(re.findall(r"^cloudseg ([a-z-]+)", text, re.MULTILINE))
    assert named == {"serve", "token", "somas"}
    assert named <= set(COMMANDS)
    serve = cli.get_command(None, "serve")
    options = {option for parameter in serve.params for option in parameter.opts}
    assert set(re.findall(r"--(?!edit|days)[a-z-]+", text)) - {"--"} <= options | {"--access-log"}
