"""Pages that lie outside of docs/ (results, changelog, infra): carried into the site, with their links set right."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parents[1]
REPOSITORY = DOCS.parent

# What is carried, and the page it becomes. README.md is not: index.md is the front door of the site.
PAGES = {
    "benchmarks/RESULTS.md": "made/results.md",
    "benchmarks/README.md": "made/benchmarks.md",
    "CHANGELOG.md": "made/changelog.md",
    "CONTRIBUTING.md": "made/contributing.md",
    "infra/README.md": "made/infra.md",
    "cloudseg/models/zoo/README.md": "made/zoo.md",
    **{
        f"infra/runbooks/{path.name}": f"made/runbooks/{path.name}"
        for path in sorted((REPOSITORY / "infra" / "runbooks").glob("*.md"))
    },
    "README.md": "index.md",
}

_LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def relink(text: str, *, at: Path, to: Path) -> str:
    """Return the Markdown ``text`` of the file ``at`` with links that hold where the site has it, in ``to``.

    Links to what is a page of the site lead there; a folder's lead to its index; any other file of the checkout stays
    a file, which the site offers for download. Code blocks are left alone.
    """

    def mend(match: re.Match[str]) -> str:
        found = (at.parent / match["path"]).resolve()
        if not found.is_relative_to(REPOSITORY):
            return match.group()
        name = found.relative_to(REPOSITORY).as_posix()
        if name in PAGES:
            found = DOCS / PAGES[name]
        elif found.is_dir():
            # A folder has no page; its index has, where there is one, and else it is named and not linked.
            found = DOCS / "made" / "runbooks.md" if name == "infra/runbooks" else found / "index.md"
            if not found.is_file() and name != "infra/runbooks":
                return "]()"
        path = Path(os.path.relpath(found, to.parent)).as_posix()
        return f"]({path}{match['anchor'] or ''})"

    parts, last = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(mend, text[last : fence.start()]), fence.group()]
        last = fence.end()
    return "".join([*parts, _LINK.sub(mend, text[last:])])


def put(path: Path, text: str) -> None:
    """Write ``text`` unless it is there already: what has not changed is not built again."""
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def carry(app: Sphinx) -> None:
    """Copy the pages from outside."""
    for name, page in PAGES.items():
        if page.startswith("made/"):
            source, target = REPOSITORY / name, DOCS / page
            put(target, relink(source.read_text(encoding="utf-8"), at=source, to=target))

    runbooks = [
        name.removeprefix("made/").removesuffix(".md") for name in PAGES.values() if "runbooks" in name
    ]
    lines = ["# Runbooks", "", "One page for each alarm.", "", "```{toctree}", *runbooks, "```", ""]
    put(DOCS / "made" / "runbooks.md", "\n".join(lines))


def mend_links(app: Sphinx, docname: str, content: list[str]) -> None:
    """Let the pages of docs/ link to files beside docs/, as they must where they are read as files."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md" and not docname.startswith("made/"):
        content[0] = relink(content[0], at=path, to=path)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", carry)
    app.connect("source-read", mend_links)
    return {"parallel_read_safe": True}
