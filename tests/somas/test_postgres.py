"""The database is a cache: loaded once, loaded anew when the bucket differs, removed without loss."""

from __future__ import annotations

import pytest
from adbc_driver_postgresql import dbapi
from click.testing import CliRunner
from made_catalogues import write

from cloudseg import NotFoundError, Somas, TransientStorageError
from cloudseg.cli.somas import somas as command
from cloudseg.server.app import create_app, running
from cloudseg.server.datasets import Datasets
from cloudseg.somas.postgres import Pool, PostgresEngine, engines, load, unload
from cloudseg.somas.sql import Bind
from cloudseg.somas.store import read_catalog
from cloudseg.testing.somas import SPEC, soma_table


def rows(url, text):
    with dbapi.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute(text)
        return cursor.fetchall()


def test_a_version_is_loaded_once_and_again_if_it_is_another(postgres, tmp_path):
    spec_name = SPEC.dataset
    objects = write(f"{tmp_path}/a/somas", soma_table(50, seed=1), version=3)
    catalog = read_catalog(objects)
    assert unload(postgres, spec_name, 3) is False
    run = CliRunner().invoke(command, ["load", f"{tmp_path}/a", postgres], catch_exceptions=False)
    assert run.output == "loaded version 3 of made-up (50 somas)\n"
    again = CliRunner().invoke(command, ["load", f"{tmp_path}/a/somas", postgres], catch_exceptions=False)
    assert again.output == "version 3 of made-up (50 somas) is there already\n"
    other = write(f"{tmp_path}/b/somas", soma_table(60, seed=2), version=3)
    with pytest.raises(NotFoundError, match="version 3 of 'made-up' is not in the database .*; load it with"):
        PostgresEngine(Pool(postgres), read_catalog(other))
    assert load(postgres, other, read_catalog(other)) is True
    with pytest.raises(NotFoundError, match="cloudseg somas load"):
        PostgresEngine(Pool(postgres), catalog)
    number = rows(postgres, "SELECT number FROM cloudseg.catalogues WHERE version = 3")[0][0]
    shown = rows(postgres, f"SELECT soma_id::text FROM cloudseg.readable_{number}")
    assert {int(text) for (text,) in shown} == set(soma_table(60, seed=2)["soma_id"].to_pylist())
    gone = CliRunner().invoke(command, ["unload", postgres, "made-up", "3"], catch_exceptions=False)
    assert gone.output == "removed version 3 of made-up\n"
    assert rows(postgres, "SELECT 1 FROM cloudseg.catalogues WHERE version = 3") == []
    assert rows(postgres, f"SELECT to_regclass('cloudseg.somas_{number}')::text") == [(None,)]


def test_a_version_that_is_not_loaded_yet_is_answered_from_the_bucket(
    postgres, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr("cloudseg.server.datasets._LOOK_S", 0.0)
    objects = write(f"{tmp_path}/somas", soma_table(50, seed=1), dataset="late")
    load(postgres, objects, read_catalog(objects))
    datasets = Datasets([str(tmp_path)], open_engine=engines(postgres))

    def engine(version=None):
        return type(datasets.catalogue("late", version)[2]._engine).__name__

    with running(create_app([], datasets=datasets)) as url:
        first = Somas(url)
        assert engine() == "PostgresEngine"
        write(f"{tmp_path}/somas", soma_table(70, seed=2), version=2, dataset="late")
        second = Somas(url)
        assert (second.version, second.count(tombstones=True)) == (2, 70)
        assert (first.version, first.count(tombstones=True)) == (1, 50)
        assert (engine(), engine(1)) == ("DuckEngine", "PostgresEngine")
        assert [each.getMessage() for each in caplog.records if "late" in each.getMessage()] == [
            f"version 2 of 'late' is not in the database {Pool(postgres).address}; load it with: cloudseg somas load "
            "CATALOGUE DATABASE; until then its Parquet files answer"
        ]
        load(postgres, objects, read_catalog(objects))
        assert engine() == "DuckEngine", "it is not looked for with each question"
        monkeypatch.setattr("cloudseg.server.datasets.time.monotonic", lambda: 1e18)
        assert engine() == "PostgresEngine"
        assert second.count(tombstones=True) == 70


def test_a_load_that_fails_leaves_nothing(postgres, tmp_path):
    objects = write(f"{tmp_path}/somas", soma_table(50), version=4)
    catalog = read_catalog(objects)
    objects.delete(catalog.parts[0].key)
    with pytest.raises(NotFoundError):
        load(postgres, objects, catalog)
    assert unload(postgres, "made-up", 4) is False


def test_a_box_can_be_found_by_the_index(postgres, tmp_path):
    objects = write(f"{tmp_path}/somas", soma_table(2000), version=5)
    load(postgres, objects, read_catalog(objects))
    engine = PostgresEngine(Pool(postgres), read_catalog(objects))
    bind = Bind()
    condition = engine.dialect.centroid_in(bind, ((0.0, 0.0, 0.0), (9e3, 9e3, 9e3)))
    for number, value in enumerate(bind.values, 1):
        condition = condition.replace(f"${number}", f"ARRAY{value}")
    with dbapi.connect(postgres) as connection, connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")  # 2000 rows are read faster without an index
        cursor.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
        cursor.execute(f"EXPLAIN SELECT 1 FROM {engine.source(None)} WHERE {condition}")
        assert "_cube_idx" in str(cursor.fetchall())
    unload(postgres, "made-up", 5)


def test_no_database_is_said(tmp_path):
    objects = write(f"{tmp_path}/somas", soma_table(5))
    with pytest.raises(
        TransientStorageError, match="cannot reach the database postgresql://127.0.0.1:9/x: "
    ) as error:
        load("postgresql://ann:secret@127.0.0.1:9/x", objects, read_catalog(objects))
    assert "secret" not in str(error.value)
    datasets = Datasets([str(tmp_path)], open_engine=engines("postgresql://127.0.0.1:9/x"))
    with running(create_app([], datasets=datasets)) as url, pytest.MonkeyPatch.context() as patch:
        patch.setattr("cloudseg.client.transport.ATTEMPTS", 1)
        with pytest.raises(TransientStorageError, match="answered 503"):
            Somas(url)
