"""What measurements leave: rows in a file, tables in pages."""

import json


def collected(rows, table, file, place):
    """Tell rows as they come and keep them in a file (None: in none); tell their table and put it to a
    place in a page, (page, begin, end) (None: to none)."""
    found = []
    for row in rows:
        print(json.dumps(row), flush=True)
        found.append(row)
    if file:
        with open(file, "w") as out:
            json.dump(found, out, indent=1)
    print(table(found))
    if place:
        put(*place, table(found))


def put(page, begin, end, text):
    """Put a text between two marks of a page, in place of what stands there."""
    before, rest = page.read_text("utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", "utf-8")
