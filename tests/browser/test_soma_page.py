"""The soma page in a real browser: table, plots and view say the same, and what fails says so."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cloudseg import Somas
from cloudseg.server.access import Access, TokenEntry, TokenFile
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.opinions import in_effect, read_opinions
from cloudseg.somas.schema import BY_NAME
from cloudseg.somas.store import read_catalog
from cloudseg.somas.thumbnails import publish_thumbnails, write_shards
from cloudseg.testing.somas_in_volume import write_catalogue
from cloudseg.volumes import open_objects, open_volume
from cloudseg_viewer.links import build_link, mounts
from cloudseg_viewer.roots import read_root

pytestmark = pytest.mark.browser

N = 5000
LAYERS = ["image", "mask", "affinities", "supervoxels", "segmentation", "somas"]
ARTIFACTS = Path(__file__).resolve().parents[2] / "test-artifacts"
EDITOR, READER, OLD = "cs_editor-secret", "cs_reader-secret", "cs_old-secret"


def entry(name, token, **more):
    return TokenEntry(name=name, sha256=hashlib.sha256(token.encode()).hexdigest(), **more)


TOKENS = TokenFile(
    secret="a secret of sixteen",
    tokens=(
        entry("ben", EDITOR, scopes=("read", "edit")),
        entry("ann", READER),
        entry("cat", OLD, expires=datetime(2020, 1, 1, tzinfo=UTC)),
    ),
)


@contextmanager
def served(root, *, tokens=None):
    """The root and its catalogue as `cloudseg serve` offers them."""
    found = read_root(str(root))
    access = Access(tokens)
    offered = mounts(found.uri, found.layers)
    url = build_link(found.uri, found.layers, server="http://127.0.0.1:8642", focus_nm=found.focus_nm).url
    for mount in offered:
        url = url.replace(f"/data/{mount.name}", f"/data/{access.capability(mount.name)}")
    app = create_app(offered, links={found.uri: url}, datasets=Datasets([found.uri]), access=access)
    with running(app) as base:
        yield base


@pytest.fixture(scope="module")
def somas(root):
    """The made-up somas of the little root."""
    return write_catalogue(root, N)


@pytest.fixture(scope="module")
def base(root, somas):
    with served(root) as base:
        yield base


STATE = "() => document.documentElement.dataset.state"


def opened(page, url, *, state="ready", size=(1200, 760)):
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.goto(url)
    page.wait_for_function(f"() => document.documentElement.dataset.state === '{state}'", timeout=90_000)
    return page


@pytest.fixture(scope="module")
def page(new_page, base):
    """The page, opened once; each test leaves its filters as it found them."""
    return opened(new_page(), f"{base}/page/")


@pytest.fixture(autouse=True)
def _cleared(request):
    yield
    if "page" in request.fixturenames:
        page = request.getfixturevalue("page")
        page.evaluate(
            "() => { document.getElementById('clear').click(); window.page.model.setSort('soma_id', false);"
            " window.page.model.choose(-1); }"
        )


# What the graphics memory was given: points that are shown, by state.
IN_SPACE = """() => {
  const counts = {};
  for (const [data] of window.page.space.cells()) {
    const bytes = data.serializedAnnotations.data;
    for (let i = 28; i < bytes.length; i += 32) counts[bytes[i]] = (counts[bytes[i]] ?? 0) + 1;
  }
  return counts;
}"""


def shown(page):
    """How many somas model, table, count and view show: one number, or the test fails."""
    page.wait_for_function("() => [...window.page.space.cells()].length > 0")
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    n = page.evaluate("() => window.page.model.shown.length")
    in_space = {int(k): v for k, v in page.evaluate(IN_SPACE).items()}
    # The chosen one is marked in the view whatever the filters say.
    outside = page.evaluate(
        "() => { const m = window.page.model; return m.chosen >= 0 && !m.isShown(m.chosen); }"
    )
    assert 0 not in in_space
    assert sum(in_space.values()) == n + outside
    assert int(page.inner_text("#count").split(" of ")[0].replace("\u2009", "")) == n
    assert int(page.get_attribute("#table .body", "aria-rowcount")) == n + 1
    return n


def shown_ids(page):
    """Soma ids in the order of the table, as text."""
    return page.evaluate(
        "() => { const { model } = window.page, ids = model.columns.get('soma_id').values;"
        " return Array.from(model.shown, (row) => String(ids[row])); }"
    )


def type_filter(page, text):
    page.fill("#line", text)
    page.press("#line", "Enter")


def settle(page):
    """Let two frames go by."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_image_neurons_somas_table_and_plots_appear_together(page, somas, wait_loaded):
    state = wait_loaded(page, names=LAYERS, timeout_s=120)
    assert state["errors"] == []
    gone = np.isin(somas["status"].to_numpy(zero_copy_only=False), ["rejected", "merged"]).sum()
    assert shown(page) == N - gone
    page.locator("#table .row[data-row]").nth(2).click()
    type_filter(page, "score >= 0.4")
    shown(page)
    ARTIFACTS.mkdir(exist_ok=True)
    page.set_viewport_size({"width": 1440, "height": 900})
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        settle(page)
        wait_loaded(page, names=LAYERS)
        page.screenshot(path=ARTIFACTS / f"soma-page-{scheme}.png")
    rows = page.locator("#table .spacer .row:visible").count()
    assert 10 < rows < 60, "only the rows on screen exist"
    for canvas in page.locator("#plots canvas").all():
        size = canvas.bounding_box()
        assert size["width"] > 80
        assert size["height"] > 60
    assert page.problems == []


def random_where(rng, somas):
    """Conditions in the client's grammar, about values that occur."""
    where = {}
    for name in rng.sample(
        ["volume_um3", "score", "sphericity", "region", "side", "segment_id", "x_nm", "n_blocks"], 2
    ):
        values = somas[name].drop_null().to_pylist()
        some = [str(v) if name == "segment_id" else v for v in rng.sample(values, 2)]
        if BY_NAME[name].kind == "text":
            kinds = [some[0], some, {"!=": some[0]}, {"not_in": some[:1]}, {"is_null": rng.random() < 0.5}]
        else:
            kinds = [some[0], {">=": some[0]}, {"<": some[1]}, {">": some[0], "<=": some[1]}, {"!=": some[0]}]
            kinds += [{"in": some}, {"not_in": some}, {"is_null": rng.random() < 0.5}, {"in": []}]
        where[name] = rng.choice(kinds)
    return where


def test_the_filter_line_means_what_the_client_means(page, base, somas):
    rng = random.Random(5)
    wheres = [random_where(rng, somas) for _ in range(60)]
    wheres += [{"status": "rejected"}, {"bbox_min_x_nm": {">": 700}}, {"soma_id": [str(somas["soma_id"][0])]}]
    client = Somas(base)
    for where in wheres:
        got = page.evaluate(
            """async (text) => {
              const line = document.getElementById("line");
              line.value = text;
              await window.page.readLine();
              return [window.page.model.shown.length, document.getElementById("line-problem").textContent];
            }""",
            json.dumps(where),
        )
        assert got == [client.count(where), ""], where


@pytest.mark.parametrize(
    ("typed", "where"),
    [
        ("volume_um3 >= 50 and side = left", {"volume_um3": {">=": 50}, "side": "left"}),
        (
            "50 <= volume_um3 < 200, region in [LO, 'ME']",
            {"volume_um3": {">=": 50, "<": 200}, "region": ["LO", "ME"]},
        ),
        (
            "segment_id is not null & side not in (left)",
            {"segment_id": {"is_null": False}, "side": {"not_in": ["left"]}},
        ),
        ('region == "it\'s; DROP"', {"region": "it's; DROP"}),
    ],
)
def test_the_filter_line_is_typed_as_words(page, base, typed, where):
    type_filter(page, typed)
    expected = Somas(base).count(where)
    page.wait_for_function(f"() => window.page.model.shown.length === {expected}")
    assert shown(page) == expected
    assert page.inner_text("#line-problem") == ""


@pytest.mark.parametrize(
    ("typed", "problem"),
    [
        ("volum_um3 > 5", 'there is no column "volum_um3"; did you mean volume_um3'),
        ("side > left", "> compares numbers, and side is text; use == != in not_in is_null"),
        ("volume_um3 >= many", 'volume_um3 is a number, got "many"'),
        ("volume_um3 > 5 or side = left", "there is no 'or'; for several values write: column in [a, b]"),
        ("soma_id = 18446744073709551616", "an id is a whole number from 0 to 2^64 - 1"),
        ('{"soma_id": 18446744073709551615}', "ids above 2^53 lose digits in JSON; write the id as text"),
        ("region in [LO", "the list is not closed; end it with ]"),
        ("side = 'left", "a quote is not closed"),
    ],
)
def test_a_line_that_cannot_be_read_says_why_and_changes_nothing(page, typed, problem):
    before = page.evaluate("() => window.page.model.shown.length")
    type_filter(page, typed)
    page.wait_for_function("() => document.getElementById('line-problem').textContent")
    assert problem in page.inner_text("#line-problem")
    assert page.evaluate("() => window.page.model.shown.length") == before


def drag(page, canvas, start, end):
    """Draw a range or a box; places are parts of the canvas."""
    box = canvas.bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*at[1], steps=4)
    page.mouse.up()


def test_a_range_and_a_box_drawn_with_the_mouse_filter_everything(page, base):
    volume = page.locator("#plots .histogram canvas").first
    everything = shown(page)
    drag(page, volume, (0.45, 0.5), (0.8, 0.5))
    low, high = page.evaluate("() => window.page.model.brushes.get('volume_um3')")
    where = {"volume_um3": {">=": low, "<": high}}
    assert 0 < shown(page) < everything
    assert shown(page) == Somas(base).count(where)
    assert page.input_value("#plots .histogram .low") == f"{low:g}"

    drag(page, page.locator("#plots .map canvas"), (0.4, 0.3), (0.6, 0.7))
    box = page.evaluate("() => window.page.model.box")
    where |= {f"{axis}_nm": {">=": box["low"][i], "<": box["high"][i]} for i, axis in enumerate("xy")}
    both = shown(page)
    assert both == Somas(base).count(where) > 0
    assert page.evaluate("() => window.page.model.where()") == where
    # A plot shows what the other filters leave of it, not what its own does.
    counts = page.evaluate(
        """() => { const [fails, mask] = window.page.model.passesBut("volume_um3");
                   return fails.reduce((n, f) => n + ((f & mask) === 0 ? 1 : 0), 0); }"""
    )
    assert counts > both
    page.locator("#plots .histogram .clear").first.click()
    del where["volume_um3"]
    assert shown(page) == Somas(base).count(where)


def test_a_click_or_enter_flies_there_and_selects_the_neuron(page, somas):
    type_filter(page, "segment_id is not null")
    page.locator("#table .row[data-row]").nth(3).click()
    known = dict(zip(somas["soma_id"].to_pylist(), range(N), strict=True))

    def check():
        settle(page)
        chosen = page.evaluate(
            "() => String(window.page.model.columns.get('soma_id').values[window.page.model.chosen])"
        )
        row = known[int(chosen)]
        wanted = [somas[f"{axis}_nm"][row].as_py() / 8 for axis in "xyz"]
        there = page.evaluate("() => Array.from(window.page.space.viewer.navigationState.position.value)")
        assert there == pytest.approx(wanted, abs=0.01)
        segments = page.evaluate(
            "() => [...window.page.space.layer('segmentation').displayState.segmentationGroupState.value"
            ".visibleSegments].map(String)"
        )
        assert segments == [str(somas["segment_id"][row])]
        assert page.locator("#table .row[aria-selected=true]").count() == 1
        assert chosen in page.inner_text("#chosen h2")
        return chosen

    first = check()
    page.focus("#table .body")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    second = check()
    assert second != first
    page.keyboard.press("End")
    settle(page)
    assert page.locator("#table .row[aria-selected=true]").is_visible(), "the table follows"
    page.keyboard.press("k")
    check()


def test_a_click_on_a_soma_in_the_view_chooses_its_row(page, wait_loaded):
    page.locator("#table .row[data-row]").nth(5).click()
    chosen = page.evaluate("() => window.page.model.chosen")
    # Alone, for others lie before and behind it; those that are hidden cannot be picked.
    type_filter(page, f"soma_id = {page.inner_text('#chosen h2').split()[1]}")
    assert shown(page) == 1
    page.evaluate("() => window.page.model.choose(-1)")
    wait_loaded(page, names=LAYERS)
    frame = page.locator("#space-frame").bounding_box()
    panel = (
        page.frame_locator("#space-frame").locator(".neuroglancer-rendered-data-panel").first.bounding_box()
    )
    assert panel["x"] >= frame["x"]
    middle = (panel["x"] + panel["width"] / 2, panel["y"] + panel["height"] / 2)
    page.mouse.move(middle[0] - 3, middle[1] - 3)
    page.mouse.move(*middle)
    page.wait_for_timeout(
        500
    )  # what lies under the mouse comes back from the graphics memory with a later frame
    page.mouse.click(*middle)
    page.wait_for_function("() => window.page.model.chosen >= 0")
    assert page.evaluate("() => window.page.model.chosen") == chosen
    settle(page)
    assert page.locator("#table .row[aria-selected=true]").is_visible()
    assert page.evaluate("() => document.activeElement.className") == "body", "keys are the page's again"


def test_a_link_brings_everything_back(page, new_page, wait_loaded):
    type_filter(page, "side in [left, right]")
    drag(page, page.locator("#plots .histogram canvas").nth(2), (0.3, 0.5), (0.9, 0.5))
    drag(page, page.locator("#plots .map canvas"), (0.3, 0.2), (0.7, 0.8))
    page.locator("#table .head button", has_text="volume").click()
    page.locator("#table .row[data-row]").nth(1).click()
    page.select_option("#colour", "score")
    n = shown(page)
    asked = """() => { const { model, space } = window.page; return JSON.stringify([
      model.where(), model.sort, String(model.columns.get("soma_id").values[model.chosen]), model.shown.length,
      document.getElementById("colour").value, space.where().position.map((v) => Math.round(v * 100))]); }"""
    before = page.evaluate(asked)
    link = page.evaluate("() => window.page.link()")
    assert "token" not in link
    other = opened(new_page(), link)
    wait_loaded(other, names=LAYERS)
    assert shown(other) == n
    assert other.evaluate(asked) == before
    settle(other)
    assert other.locator("#table .row[aria-selected=true]").is_visible()
    assert other.problems == []
    other.close()


def test_csv_is_what_the_client_answers(page, base):
    type_filter(page, "volume_um3 >= 200")
    page.locator("#table .head button", has_text="volume").click()
    with page.expect_download() as waiting:
        page.click("#csv")
    assert waiting.value.suggested_filename == "made-up-v1-somas.csv"
    rows = list(csv.DictReader(Path(waiting.value.path()).read_text().splitlines()))
    asked = Somas(base).query({"volume_um3": {">=": 200}}, order="volume_um3")
    assert [int(row["soma_id"]) for row in rows] == asked["soma_id"].tolist()
    assert [float(row["volume_um3"]) for row in rows] == asked["volume_um3"].tolist()
    assert [np.float32(row["score"]) for row in rows] == asked["score"].tolist()
    assert [row["segment_id"] for row in rows] == ["" if v is pd.NA else str(v) for v in asked["segment_id"]]


def test_python_of_the_page_gives_the_same_rows(page, base, tmp_path):
    type_filter(page, "volume_um3 >= 100 and segment_id is not null")
    drag(page, page.locator("#plots .histogram canvas").nth(3), (0.1, 0.5), (0.5, 0.5))
    for _ in range(2):  # falling, and many volumes are equal
        page.locator("#table .head button", has_text="volume").click()
    assert page.evaluate("() => window.page.model.sort") == {"column": "volume_um3", "descending": True}
    names = {}
    exec(page.evaluate("() => window.page.model.python(location.origin)"), names)  # what a reader would paste
    assert [str(v) for v in names["df"]["soma_id"]] == shown_ids(page)


@pytest.fixture(scope="module")
def guarded(root, somas):
    """The same behind tokens."""
    with served(root, tokens=TOKENS) as base:
        yield base


def with_token(page, base, token, **more):
    page.add_init_script(f"sessionStorage.setItem('cloudseg-token', {token!r})")
    return opened(page, f"{base}/page/", **more)


def test_verdicts_are_given_by_keys_taken_back_and_stored(guarded, new_page, root):
    page = with_token(new_page(), guarded, EDITOR)
    page.wait_for_function("() => window.page.space.layer('somas')")
    ids = shown_ids(page)
    page.locator("#table .row[data-row]").first.click()
    for key in "aaruar":  # accept, accept, reject, undo, accept, reject
        page.keyboard.press(key)
    page.wait_for_function("() => document.getElementById('notice').textContent === 'saved'")
    assert page.evaluate("() => window.page.model.verdicts.size") == 4
    effect = {
        str(soma): each for (soma, _), each in in_effect(read_opinions(open_objects(root / "somas"))).items()
    }
    assert [effect[i].value for i in ids[:4]] == ["verified", "verified", "verified", "rejected"]
    assert {each.source for each in effect.values()} == {"ben/soma page"}
    assert effect[ids[0]].version == 1
    in_space = page.evaluate(IN_SPACE)
    assert (in_space["2"], in_space["3"]) == (3, 1), "accepted and rejected have their own colours"
    page.check("#unvetted")
    assert shown(page) == page.evaluate("() => window.page.model.n") - gone_of(page) - 4
    # Somebody else, later, sees them; and may look, not write.
    other = with_token(new_page(), guarded, READER, state="ready")
    other.wait_for_function("() => window.page.model.verdicts.size === 4")
    other.locator("#table .row[data-row]").first.click()
    other.keyboard.press("r")
    assert "Your token may read and not edit" in other.inner_text("#notice")
    assert other.evaluate("() => window.page.model.verdicts.size") == 4
    for each in (page, other):
        assert each.problems == []
        each.close()


def gone_of(page):
    return page.evaluate(
        "() => { const s = window.page.model.columns.get('status');"
        " return s.values.reduce((n, v) => n + (['rejected', 'merged'].includes(s.words[v]) ? 1 : 0), 0); }"
    )


def test_without_a_token_or_with_an_old_one_a_letter_asks_for_one(guarded, new_page):
    page = new_page()
    opened(page, f"{guarded}/page/", state="letter")
    assert "This server wants a token" in page.inner_text("#letter")
    page.fill("#token", OLD)
    page.press("#token", "Enter")
    page.wait_for_function(
        "() => document.getElementById('letter')?.textContent.includes('expired on 2020-01-01')"
    )
    page.screenshot(path=ARTIFACTS / "soma-page-letter.png")
    page.fill("#token", READER)
    page.press("#token", "Enter")
    page.wait_for_function("() => document.documentElement.dataset.state === 'table'")
    assert "somas" in page.inner_text("#count")
    assert READER not in page.url
    page.close()


def test_no_catalogue_and_no_server_are_letters(new_page, tmp_path):
    page = new_page()
    with running(create_app([], datasets=Datasets([str(tmp_path)]))) as base:
        opened(page, f"{base}/page/", state="letter")
        assert "No soma catalogue is published here yet" in page.inner_text("#letter")
        assert "cloudseg serve ROOT" in page.inner_text("#letter")
        page.goto(f"{base}/page/?dataset=none")
        page.wait_for_function(
            "() => document.getElementById('letter')?.textContent.includes(\"no dataset 'none'\")"
        )
        # The page's files come, and then the server goes.
        page.route("**/v1/**", lambda route: route.abort())
        page.goto(f"{base}/page/?again")
        page.wait_for_function(
            "() => document.getElementById('letter')?.textContent.includes('is `cloudseg serve` still running')"
        )
    page.close()


def test_an_edit_that_gets_no_answer_is_kept_and_sent_again(guarded, new_page, root):
    page = with_token(new_page(), guarded, EDITOR, state="table")
    before = len(read_opinions(open_objects(root / "somas")))
    page.route(
        "**/annotations", lambda route: route.abort() if route.request.method == "POST" else route.fallback()
    )
    page.wait_for_function("() => window.page.verdicts")
    page.evaluate("() => { const { page } = window; page.verdicts.give(page.model.shown[20], 'verified'); }")
    page.wait_for_function(
        "() => document.getElementById('notice').textContent.startsWith('1 not saved: No answer')"
    )
    page.unroute("**/annotations")
    page.wait_for_function("() => !window.page.verdicts.batch && !window.page.verdicts.waiting.length")
    assert not page.inner_text("#notice").startswith("1 not saved")
    assert len(read_opinions(open_objects(root / "somas"))) == before + 1
    page.close()


def test_pictures_that_the_pipeline_drew_stand_beside_the_numbers(tmp_path, root, new_page):
    folder = tmp_path / "run"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("somas"))
    write_catalogue(folder, 30)
    objects = open_objects(folder / "somas")
    images, masks = ([open_volume(str(each))] for each in (root.parent / "em", folder / "segmentation"))
    write_shards(objects, read_catalog(objects), images, masks)
    publish_thumbnails(objects, 1)
    with served(folder) as base:
        page = opened(new_page(), f"{base}/page/", state="table")
        for row in (0, 2):
            page.locator("#table .row[data-row]").nth(row).click()
            page.wait_for_function(
                "() => { const image = document.querySelector('#chosen img');"
                " return image?.naturalWidth > 3 * 64 && image.alt.includes(document.querySelector('#chosen h2')"
                ".textContent); }"
            )
        page.screenshot(path=ARTIFACTS / "soma-page-pictures.png")
        assert page.locator("#chosen img").bounding_box()["height"] == 84
    page.close()


@pytest.mark.slow
def test_150_000_somas_are_filtered_between_two_frames(tmp_path_factory, root, new_page, wait_loaded):
    folder = tmp_path_factory.mktemp("many") / "run"
    shutil.copytree(root, folder, ignore=shutil.ignore_patterns("somas"))
    write_catalogue(folder, 150_000)
    with served(folder) as base:
        page = opened(new_page(), f"{base}/page/")
        wait_loaded(page, names=LAYERS)
        everything = shown(page)
        where = {"volume_um3": {">=": 120}}
        type_filter(page, "volume_um3 >= 120")
        page.wait_for_function(f"() => window.page.model.shown.length < {everything}")
        assert shown(page) == Somas(base).count(where)
        drag(page, page.locator("#plots .map canvas"), (0.3, 0.2), (0.7, 0.8))
        assert shown(page) < Somas(base).count(where)
        page.screenshot(path=ARTIFACTS / "soma-page-150000.png")
        assert page.problems == []
