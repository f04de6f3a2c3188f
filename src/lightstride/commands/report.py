"""The command `report`: folders of results to one page, its pictures beside it."""

import importlib
import sys
from collections.abc import Mapping
from importlib.util import find_spec

from lightstride.commands.outputs import only_writer
from lightstride.config import ReportConfig
from lightstride.errors import ConfigError
from lightstride.files import whole_file
from lightstride.report.facts import read_folders


def report(config: ReportConfig) -> Mapping[str, object]:
    """Write the page and its pictures; their names."""
    if find_spec("matplotlib") is None:
        raise ConfigError("report needs matplotlib: pip install 'lightstride[report]'")
    charts = importlib.import_module("lightstride.report.charts")
    learning = importlib.import_module("lightstride.report.learning")
    page = importlib.import_module("lightstride.report.page")
    facts = read_folders(config.folder)
    pictures = [*charts.pictures(facts), *learning.learning_pictures(facts)]
    output = config.page
    files = {output.with_name(f"{output.stem}-{one.name}.png"): one.png for one in pictures}
    written = {**files, output: page.render(facts, pictures).encode()}
    with only_writer(output):
        for path, content in written.items():
            with whole_file(path) as partial:
                partial.write_bytes(content)
    sys.stdout.write(f"{page.answer(facts)}\n{output}\n")
    return {"page": str(output), "pictures": [str(path) for path in files]}
