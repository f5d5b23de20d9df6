"""An Optuna whose tables are others than we write is refused, by name and with what to do."""

import pytest
from optuna.storages._rdb.models import BaseModel
from sqlalchemy import BigInteger, Column, Integer, MetaData, Table

from search.storage.schema import optuna_problem


def copied(*left_out: str) -> MetaData:
    """Optuna's tables again, without some."""
    copy = MetaData()
    for name, table in BaseModel.metadata.tables.items():
        if name not in left_out:
            table.to_metadata(copy)
    return copy


def test_the_installed_optuna_is_the_one_we_write() -> None:
    assert optuna_problem() is None
    assert optuna_problem(copied()) is None


def test_a_new_column_a_new_type_and_a_new_table_are_refused() -> None:
    wider, other, more = copied(), copied(), copied()
    wider.tables["trials"].append_column(Column("priority", Integer))
    other.tables["trials"].c.number.type = BigInteger()
    Table("trial_constraints", more, Column("trial_id", Integer, primary_key=True))

    for tables, expected in (
        (wider, r"\(trials; first: priority INTEGER\)"),
        (other, r"\(trials; first: number BIGINT, number INTEGER\)"),
        (more, r"\(trial_constraints; first: trial_id INTEGER not null key\)"),
        (copied("version_info"), r"\(version_info; "),
    ):
        problem = optuna_problem(tables)
        assert problem is not None
        with pytest.raises(ValueError, match=expected):
            raise ValueError(problem)
        assert "pip install 'optuna~=5.0.0', or a newer Slimfront" in problem
