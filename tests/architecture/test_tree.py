"""The tree stays what the design says: small modules, small files, our own words."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_MODULE_LINES = 500
MAX_FILE_BYTES = 400_000

# Trained weights are the one large thing that a checkout carries: so that the demo needs no download.
WEIGHTS = "cloudseg/models/zoo/"
MAX_WEIGHTS_BYTES = 20_000_000

BINARY = {".npz", ".png", ".safetensors", ".parquet"}

# An address that holds on one machine only says nothing to any other reader.
LOCAL_ADDRESS = re.compile(r"(?:(?<![\w.$}/])|(?<=file://))/(?:home|root|Users|work|opt|mnt)/[\w.-]+")
REGISTRY_HOST = re.compile(
    r"(?:--(?:extra-)?index-url|--find-links|files\.pythonhosted\.org|//pypi\.org|download\.pytorch\.org)"
)

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None or not (REPOSITORY / ".git").exists(),
    reason="not a git checkout: no list of tracked files",
)


def tracked() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    return [REPOSITORY / name for name in listing.split("\0") if name and (REPOSITORY / name).is_file()]


def texts() -> list[tuple[str, str]]:
    here = Path(__file__)
    return [
        (path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
        for path in tracked()
        if path.suffix not in BINARY and path != here
    ]


def test_the_list_of_files_is_not_empty():
    assert len(tracked()) > 50


def test_every_text_file_is_utf8_with_a_last_line_end_and_no_tabs_in_python():
    for name, text in texts():
        assert not text or text.endswith("\n"), f"{name} does not end with a line end"
        assert "\r" not in text, f"{name} has carriage returns"
        if name.endswith(".py"):
            assert "\t" not in text, f"{name} has tabs"


def test_no_file_knows_one_machine():
    found = [
        f"{name}:{number}: {match.group()}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := LOCAL_ADDRESS.search(line))
    ]
    assert not found, "addresses of one machine:\n" + "\n".join(found)


def test_no_file_names_a_package_registry():
    found = [name for name, text in texts() if REGISTRY_HOST.search(text)]
    assert not found, f"plain pip must do, but these name a registry: {found}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see /home/ann/data", True),
        ("'/work/x'", True),
        ("file:///root/.cache", True),
        ("https://host/home/page", False),
        ("gs://bucket/work/layer", False),
        ("memory://root/image", False),
        ("/app/data", False),
        ("./work/x", False),
    ],
)
def test_the_search_for_addresses_finds_what_it_should(line, found):
    assert bool(LOCAL_ADDRESS.search(line)) is found


def test_no_file_is_large_but_the_trained_weights():
    for path in tracked():
        name, size = path.relative_to(REPOSITORY).as_posix(), path.stat().st_size
        limit = (
            MAX_WEIGHTS_BYTES
            if name.startswith(WEIGHTS) and path.suffix == ".safetensors"
            else MAX_FILE_BYTES
        )
        assert size <= limit, (
            f"{name} has {size} bytes, more than {limit}: generate it, or fetch it when it is needed"
        )


def test_no_third_party_bundle_is_tracked():
    bundles = {
        ".whl",
        ".js.map",
        ".jar",
        ".so",
        ".dll",
        ".zip",
        ".gz",
        ".tar",
        ".pt",
        ".pth",
        ".pkl",
        ".onnx",
    }
    for path in tracked():
        name = path.relative_to(REPOSITORY).as_posix()
        assert not bundles & set(path.suffixes), f"{name} is a bundle"
        assert not {"node_modules", "vendor", "third_party", "site-packages"} & set(path.parts), name
        assert not name.endswith(".min.js"), f"{name} is somebody's minified code"


def modules() -> list[Path]:
    return [
        path
        for path in tracked()
        if path.suffix == ".py" and path.relative_to(REPOSITORY).parts[0] in ("cloudseg", "tasks", "viewer")
    ]


def test_no_module_is_longer_than_a_tired_person_can_read():
    assert modules()
    for path in modules():
        n_lines = len(path.read_text().splitlines())
        assert n_lines <= MAX_MODULE_LINES, f"{path.relative_to(REPOSITORY)} has {n_lines} lines: split it"


def test_no_function_takes_more_than_twelve_parameters():
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = node.args
                n_parameters = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
                assert n_parameters <= 12 or is_filled_by_a_machine(node), (
                    f"{path}:{node.lineno} {node.name} takes {n_parameters}"
                )


def is_filled_by_a_machine(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether click fills the parameters (each one documented option), or numba does, which knows no structures."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any("click" in text or "njit" in text for text in decorators)


UNPICKLERS = re.compile(r"(?:pickle|dill|cloudpickle|shelve|marshal)\.(?:loads?|open|Unpickler)")


def loads_unsafely(call: ast.Call) -> bool:
    """Whether a call may run what the writer of a file put into it."""
    name = ast.unparse(call.func)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name == "torch.load":
        return given.get("weights_only") != "True"
    if name in ("np.load", "numpy.load"):
        return given.get("allow_pickle", "False") != "False"
    return UNPICKLERS.fullmatch(name) is not None


def test_every_part_has_its_place_in_the_layers():
    """import-linter checks the modules that the contract names; a new one must not stay outside of it."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [contract["layers"] for contract in settings["contracts"] if contract["id"] == "layers"]
    placed = {name.strip() for layer in layers for name in layer.split("|")}
    parts = {
        f"cloudseg.{path.stem}"
        for path in (REPOSITORY / "cloudseg").iterdir()
        if path.suffix == ".py" or is_package(path)
    }
    assert parts - {"cloudseg.__init__"} <= placed
    assert {"cloudseg_tasks", "cloudseg_viewer"} <= placed


def is_package(path: Path) -> bool:
    return (path / "__init__.py").is_file()


def test_nothing_is_unpickled():
    """A pickle runs what its writer wrote; messages, models and stored objects are data."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert not loads_unsafely(node), f"{path}:{node.lineno}: {ast.unparse(node)}"
            if isinstance(node, ast.ImportFrom):
                assert node.module not in ("pickle", "dill", "cloudpickle", "shelve", "marshal"), (
                    f"{path}:{node.lineno}"
                )


@pytest.mark.parametrize(
    ("code", "unsafe"),
    [
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=True)", False),
        ("np.load(path, allow_pickle=True)", True),
        ("np.load(path)", False),
        ("pickle.loads(data)", True),
        ("json.loads(data)", False),
    ],
)
def test_the_search_for_unpickling_finds_it(code, unsafe):
    (call,) = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    assert loads_unsafely(call) is unsafe


def test_every_benchmark_is_run_by_a_test():
    """On a tiny input, so that it cannot rot between the days when somebody wants its figures."""
    tests = "\n".join(
        path.read_text() for path in tracked() if path.name.startswith("test_") and path != Path(__file__)
    )
    for path in tracked():
        if (
            path.parent == REPOSITORY / "benchmarks"
            and path.suffix == ".py"
            and not path.stem.startswith("_")
        ):
            assert re.search(rf"\b{path.stem}(?:\.py)?\b", tests), f"no test runs benchmarks/{path.name}"


def test_tests_have_unique_names():
    """With importmode=importlib two files of one name are allowed; a reader of a failure would still mix them up."""
    names = [path.name for path in tracked() if path.name.startswith("test_") and path.suffix == ".py"]
    assert sorted(names) == sorted(set(names))


def test_every_dependency_is_pinned_and_explained():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[\[=<>~!; ]", line)[0].lower().replace("_", "-")
        for line in [
            *project["dependencies"],
            *(x for extra in project["optional-dependencies"].values() for x in extra),
        ]
    } - {"cloudseg"}
    pins = (REPOSITORY / "constraints.txt").read_text().lower().replace("_", "-")
    table = (REPOSITORY / "docs" / "dependencies.md").read_text().lower().replace("_", "-")
    assert declared
    for name in sorted(declared):
        assert re.search(rf"^{re.escape(name)}==\S+$", pins, re.MULTILINE), (
            f"{name} has no pin in constraints.txt"
        )
        assert f"| {name} |" in table, f"{name} has no row in docs/dependencies.md"


def test_constraints_are_pins_and_nothing_else():
    lines = [
        line
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line), (
            f"constraints.txt: {line!r} is no plain pin"
        )
    names = [line.partition("==")[0].lower().replace("_", "-") for line in lines]
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in lines
