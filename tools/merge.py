"""Make one dataset of several: python dev.py merge A B --into C

Datasets are folders, as in output/d3po/datasets. Sets and judgements come once each, an annotator's newest
answer counts, and A and B stay as they are. Ends with 2, nothing made, where that cannot be.
"""

import argparse
import sys
from pathlib import Path

from d3po_core.dataset.index import DatasetError
from d3po_core.dataset.merging import merged

WRONG = 2


def main(arguments):
    parser = argparse.ArgumentParser(
        prog="dev.py merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--into", type=Path, required=True, help="a folder that is not there yet")
    given = parser.parse_args(arguments)
    try:
        whole = merged(given.parts, given.into)
    except DatasetError as error:
        print(f"dev.py merge: {error}", file=sys.stderr)
        return WRONG
    print(f"{given.into}: {whole.sets} sets, {whole.judgements} judgements")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
