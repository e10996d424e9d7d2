"""torchrun, told to end when the process that started it ends."""

from __future__ import annotations

import signal
import sys

from autopar.executor.processes.orphans import die_with_parent

if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)

    from torch.distributed.run import main

    main(sys.argv[1:])
