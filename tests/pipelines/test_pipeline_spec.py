"""The pipeline file: what it may say, and what is said about its mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudseg.errors import NotFoundError, SpecError
from cloudseg.pipelines.spec import PipelineSpec, differing_keys, parse_spec, read_spec, resolve_uri

HEAD = 'image = "gs://bucket/image"\nroot = "gs://bucket/root"\n'
TWO = HEAD + '[[stage]]\nkind = "toy_invert"\n[[stage]]\nkind = "toy_sum"\n'


def parse(text: str, *overrides: str) -> PipelineSpec:
    return parse_spec(text, where="p.toml", overrides=overrides)


def stages(*tables: str) -> str:
    return HEAD + "".join(f'[[stage]]\nkind = "toy_invert"\n{table}\n' for table in tables)


def test_a_file_gives_stages_of_their_own_kind_with_defaults() -> None:
    spec = parse(TWO)
    assert [stage.label for stage in spec.stages] == ["toy_invert", "toy_sum"]
    assert type(spec.stages[0]).__name__ == "InvertStage"
    assert (spec.executor, spec.max_attempts, spec.threads_per_worker) == ("local", 3, 1)
    assert spec.n_workers >= 1


def test_written_and_read_again_it_is_the_same() -> None:
    spec = parse(stages('name = "a"\npoison = [1, 2]', "after = []"), "a.options.ceiling=7", "max_attempts=1")
    again = parse(spec.to_toml())
    assert again == spec
    assert differing_keys(spec, again) == []


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.floats(allow_nan=False, allow_infinity=False))
def test_any_text_and_number_survives_toml(output: str, sleep_s: float) -> None:
    spec = parse(TWO)
    stage = spec.stages[0].model_copy(update={"output": output, "sleep_s": sleep_s})
    spec = spec.model_copy(update={"stages": (stage, spec.stages[1])})
    assert parse(spec.to_toml()) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workerz = 2\n" + TWO, r"p.toml: unknown key 'workerz'.*did you mean 'workers'"),
        (
            TWO.replace('kind = "toy_sum"', 'kind = "toy_sum"\nlayr = "x"'),
            r"stage 2 \(toy_sum\): unknown key 'layr'.*'layer'",
        ),
        (stages("[stage.options]\nceilng = 3"), r"unknown key 'options.ceilng'.*did you mean 'ceiling'"),
        (stages("sleep_s = 'long'"), r"stage 1 \(toy_invert\): sleep_s: .*number.*got 'long'"),
        (
            HEAD + '[[stage]]\nkind = "toy_inver"',
            r"stage 1: unknown stage kind 'toy_inver'.*did you mean 'toy_invert'",
        ),
        (HEAD + '[[stage]]\nname = "x"', r"stage 1 has no kind"),
        (HEAD + "stage = [3]", r"stage 1 must be a table with a kind, got 3"),
        (HEAD, r"at least one \[\[stage\]\] table"),
        (HEAD + '[[stages]]\nkind = "toy_sum"', r"unknown key 'stages': did you mean \[\[stage\]\]"),
        (TWO.replace("image = ", "imag = "), r"missing key 'image'.*|unknown key 'imag'"),
        ("executor = 'sqs://tasks.fifo'\n" + TWO, r"'sqs://tasks.fifo' is a FIFO queue"),
        (
            "executor = 'slurm'\n" + TWO,
            r"executor must be 'local' or a queue, .* or 'sqs://NAME', got 'slurm'",
        ),
        ("workers = -1\n" + TWO, r"workers: .*greater than or equal to 0"),
        ("image = \n", r"p.toml is not valid TOML"),
        (stages("", ""), r"two stages are called 'toy_invert'"),
        (stages('name = "a/b"'), r"stage name 'a/b' must be letters"),
        (stages('name = "a"\nafter = ["b"]', 'name = "b"'), r"circle: a \(after b\), b \(after a\)"),
        (
            stages('name = "aa"', 'name = "b"\nafter = "aaa"'),
            r"'b' comes after 'aaa', which is no stage.*'aa'",
        ),
        (TWO.replace("gs://bucket/root", "ftp://x/y"), r"root: 'ftp://x/y' has the unknown scheme"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(text)


def test_stages_run_after_what_they_name_and_else_in_the_order_of_the_file() -> None:
    spec = parse(
        stages('name = "c"\nafter = ["b"]', 'name = "a"\nafter = []', 'name = "b"', 'name = "d"\nafter = "a"')
    )
    assert [stage.label for stage in spec.ordered()] == ["a", "b", "c", "d"]
    assert spec.before("c") == {"a", "b"}
    assert spec.before("d") == {"a"}


def test_overrides_reach_addresses_options_and_nested_options() -> None:
    spec = parse(
        TWO,
        "root=s3://other/place",
        "workers=7",
        "toy_invert.sleep_s=0.5",
        "toy_invert.output=negative",
        "toy_invert.options.ceiling=200",
        "toy_invert.block_shape=[8, 8, 8]",
    )
    stage = spec.stages[0].model_dump()
    assert (spec.root, spec.workers) == ("s3://other/place", 7)
    assert (stage["sleep_s"], stage["output"], stage["options"]) == (0.5, "negative", {"ceiling": 200})
    assert stage["block_shape"] == (8, 8, 8)


def test_an_override_names_a_stage_by_its_name_or_by_its_kind() -> None:
    two = stages('name = "a"', 'name = "b"')
    assert [s.model_dump()["sleep_s"] for s in parse(two, "b.sleep_s=2").stages] == [0, 2]
    with pytest.raises(SpecError, match=r"several stages are of kind 'toy_invert'; name one of: a, b"):
        parse(two, "toy_invert.sleep_s=2")
    with pytest.raises(SpecError, match=r"no stage 'toy_sums' \(did you mean 'toy_sum'\?\)"):
        parse(TWO, "toy_sums.layer=x")
    with pytest.raises(SpecError, match=r"--set needs key=value.*got 'workers'"):
        parse(TWO, "workers")
    with pytest.raises(SpecError, match=r"unknown key 'slep_s'.*did you mean 'sleep_s'"):
        parse(TWO, "toy_invert.slep_s=2")
    with pytest.raises(SpecError, match=r"unknown key 'rot'.*did you mean 'root'"):
        parse(TWO, "rot=x")


def test_local_paths_and_variables_become_absolute_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_DATA", "/some/data")
    assert resolve_uri("a/../b", where="root") == f"file://{tmp_path}/b"
    assert resolve_uri("file:///x/y/", where="root") == "file:///x/y"
    assert resolve_uri("${SOME_DATA}/image", where="image") == "file:///some/data/image"
    assert resolve_uri("precomputed://gs://b/x/", where="image") == "gs://b/x"
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(SpecError, match=r"image uses \$\{SOME_DATA\}, but the environment has no variable"):
        resolve_uri("${SOME_DATA}/image", where="image")
    with pytest.raises(SpecError, match="root is empty"):
        resolve_uri(" ", where="root")


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no pipeline file"):
        read_spec(tmp_path / "no.toml")
    with pytest.raises(SpecError, match="is a folder"):
        read_spec(tmp_path)


def test_differing_keys_names_what_changes_the_result_and_nothing_else() -> None:
    a = parse(TWO)
    assert differing_keys(a, parse(TWO, "workers=9", "max_attempts=1", "executor=fq:///q")) == []
    assert differing_keys(a, parse(TWO, "toy_invert.options.ceiling=9")) == [
        "toy_invert.options.ceiling: 255 there, 9 here"
    ]
    (only_after,) = differing_keys(a, parse(TWO, "toy_sum.after=[]"))
    assert only_after.startswith("toy_sum.after")


def test_inputs_name_layers_that_exist_already(tmp_path):
    text = f'image = "{tmp_path}/i"\nroot = "{tmp_path}/r"\ninputs = {{ affinities = "{tmp_path}/a" }}\n'
    stage = '[[stage]]\nkind = "supervoxels"\n'
    spec = parse_spec(text + stage, where="p.toml", overrides=[f"inputs.supervoxels={tmp_path}/s"])
    assert spec.inputs == {"affinities": f"file://{tmp_path}/a", "supervoxels": f"file://{tmp_path}/s"}
    assert parse_spec(spec.to_toml(), where="again") == spec
    with pytest.raises(SpecError, match=r"the image is named by the key image, not under inputs"):
        parse_spec(text.replace("affinities", "image") + stage, where="p.toml")
