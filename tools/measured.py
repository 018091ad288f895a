"""Parts of pages that a measurement writes, between two marks."""


def put(page, begin, end, text):
    """Put a text between two marks of a page, in place of what stands there."""
    before, rest = page.read_text("utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", "utf-8")
