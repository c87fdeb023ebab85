"""What PyInstaller freezes: the sidecar's command line, and nothing of its own."""

import sys

from sidecar.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
