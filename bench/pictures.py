"""The validation images as files, for what takes files: `python -m bench.pictures DIRECTORY`."""

import json
import sys
from pathlib import Path

from PIL import Image

from build import images


def main() -> int:
    """The files' paths as one JSON line on stdout."""
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in images.VALIDATION:
        path = directory / f"{Path(name).stem}.png"
        if not path.exists():
            Image.fromarray(images.bundled(name)).save(path)
        paths.append(str(path))
    print(json.dumps(paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
