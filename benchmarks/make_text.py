"""Write the built-in text as two files, for benchmarks on a machine without other text.

    python benchmarks/make_text.py FOLDER

makes FOLDER/calibration.txt and, of other documents, FOLDER/held-out.txt.
"""

import sys
from pathlib import Path

from lightstride.data.windows import read_documents

CHARACTERS = 1_000_000
HELD_OUT_EVERY = 4


def main() -> int:
    """Write both files; the exit code."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    documents = read_documents("pydoc", enough_characters=CHARACTERS)
    held_out = documents[::HELD_OUT_EVERY]
    calibration = [text for text in documents if text not in held_out]
    for name, texts in (("calibration", calibration), ("held-out", held_out)):
        (folder / f"{name}.txt").write_text("\n\n".join(texts), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
