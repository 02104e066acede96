"""Reports, read as pages."""

from pathlib import Path

from helpers.pages import read_page
from helpers.running import done


def page_of(path):
    root, faults = read_page(Path(path).read_text())
    assert faults == []
    return root


def report(*args, output="r.html", **options):
    result = done("report", *args, "-o", output, "--force", **options)
    assert result.out == f"{output}\n"
    return page_of(output)
