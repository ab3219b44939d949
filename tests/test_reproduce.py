"""Committed records of small runs, one of each domain, come out again"""
from pathlib import Path

import pytest
import itnet.recipes.three_domains                                            # registers the classes of their recipes
from itnet.training.ledger import read_record
from itnet.training.reproduce import recorded_recipe, reproduce, reproduction_table

RECORDS = sorted((Path(__file__).parents[1] / "results/small").glob("*.json"))


def test_there_is_one_of_each_domain():
    assert {read_record(path).name.split("/")[0] for path in RECORDS} == {"digits", "listops", "text"}


@pytest.mark.parametrize("path", RECORDS, ids=[path.stem.split("-s0")[0] for path in RECORDS])
def test_the_same_comes_out(path, tmp_path):
    record = read_record(path)
    here = recorded_recipe(record).data.checksums()
    if (there := record.data.get("python")) != here.get("python"):
        pytest.skip(f"the text of this record is the library of {there}, and this is {here['python']}")
    found = reproduce(record, tolerance=.05, out=tmp_path, quiet=True)
    assert found.close, reproduction_table(found)
