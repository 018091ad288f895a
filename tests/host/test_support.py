"""The README's tables of what is supported are what the tests show."""

import os
import re

import pytest

from tests.host.support import tables
from tools.host import ROOT

README = ROOT / "README.md"


@pytest.mark.parametrize("name", ["families", "parts"])
def test_a_table_in_the_readme_says_what_the_tests_show(name):
    """With D3PO_ACCEPT_SUPPORT=1 it is written anew."""
    text, table = README.read_text("utf-8"), tables()[name]
    before, after = f"<!-- {name}: written by tests/host/test_support.py -->\n\n", f"\n\n<!-- /{name} -->"
    written = re.sub(
        re.escape(before) + ".*?" + re.escape(after), lambda _: before + table + after, text, flags=re.DOTALL
    )
    assert before + table + after in written, f"the README has no place for the table {name}"
    if os.environ.get("D3PO_ACCEPT_SUPPORT"):
        README.write_text(written, "utf-8", newline="\n")
    else:
        assert text == written, (
            "what is supported has changed: run this test with D3PO_ACCEPT_SUPPORT=1 to write it down"
        )


def test_both_what_works_and_what_is_refused_is_told():
    rows = tables()["parts"].splitlines()[2:]
    assert len(set(rows)) == len(rows) > 15
    assert sum("| refused: " in row for row in rows) > 5
