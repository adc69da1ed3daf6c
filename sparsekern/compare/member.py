"""A comparison's run: `python -m sparsekern.compare.member ...` is `sparsekern train ...`, but not without its parent.

Its standard input is a pipe whose other end the comparison holds. However that ends, a SIGKILL too, the pipe closes,
and the run saves and stops as on SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

from sparsekern.commands.train import train


def follow_parent(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=follow_parent, args=(sys.stdin.fileno(),), daemon=True).start()
    sys.exit(train(sys.argv[1:]))
