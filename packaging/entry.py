"""What PyInstaller freezes: the sidecar's command line, or a decoder process for it."""

import sys

from sidecar.decoder_wire import COMMAND

if __name__ == "__main__":
    if sys.argv[1:] == [COMMAND]:
        from sidecar import decoder_main  # nothing else: a decoder needs no engine and no socket

        decoder_main.main()
    from sidecar.__main__ import main

    main()
