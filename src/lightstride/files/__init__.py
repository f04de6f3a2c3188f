"""Files: written whole or not at all, read through one typed gate, one writer at a time.

write   whole files and folders under a temporary name, then renamed; lines appended
sealed  JSON with a hash of what it says, for what is written and read again
read    bytes, text, JSON and lines, bounded in size, depth and type
lock    one process writes a folder; another is told who does
"""

from lightstride.files.write import (
    append_lines,
    cache_folder,
    check_new_folder,
    read_lines,
    rename_folder,
    temporary,
    whole_file,
    whole_folder,
    write_json,
)

__all__ = [
    "append_lines",
    "cache_folder",
    "check_new_folder",
    "read_lines",
    "rename_folder",
    "temporary",
    "whole_file",
    "whole_folder",
    "write_json",
]
