"""Arrow tables to pandas: whole ids, types that do not depend on what happens to be inside, facts in ``attrs``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Columns that have a value in every row of every answer. All other whole numbers get a nullable type, so that a null
# never turns ids into floats, and the type is the same whether or not there happens to be one.
_COMPLETE = frozenset({"query_index", "n", "n_somas"})


def to_frame(table: pa.Table, facts: dict[str, Any], *, complete: bool = True) -> pd.DataFrame:
    """Return a data frame.

    Parameters
    ----------
    table
        An answer.
    facts
        Becomes ``attrs``.
    complete
        Whether the columns that every soma has are complete here too; they are not where nothing was found.
    """
    import pandas as pd
    import pyarrow as pa

    from cloudseg.somas.schema import BY_NAME

    nullable = {
        pa.uint64(): pd.UInt64Dtype(),
        pa.uint32(): pd.UInt32Dtype(),
        pa.uint16(): pd.UInt16Dtype(),
        pa.uint8(): pd.UInt8Dtype(),
        pa.int64(): pd.Int64Dtype(),
    }
    columns = {}
    for name, values in zip(table.column_names, table.columns, strict=True):
        required = name in _COMPLETE or (complete and name in BY_NAME and BY_NAME[name].required)
        if values.type in nullable and not required:
            columns[name] = values.to_pandas(types_mapper=nullable.get).array
        else:
            columns[name] = values.to_pandas().array
    # Arrays, not series: the indices of forty series would be compared with one another.
    frame = pd.DataFrame(columns)
    frame.attrs.update(facts)
    return frame
