"""`python -m tests.attacks.simulated serve ...`: the real server process, with an engine whose model is simulated.

Everything that strangers can reach is the production code: connections, text, records, supervisor, the engine's loop and its
scheduler. Only what a token is does not come from a model, so that an attack costs no minutes of computing. A prompt whose
first token is one of those named in `tests.gateway.simulated_engine` ends its engine.
"""

from __future__ import annotations

import sys
from functools import partial

from poise.cli import main
from poise.gateway import serve
from poise.gateway.supervision.supervisor import Supervisor

ENGINE = (sys.executable, "-m", "tests.gateway.simulated_engine", "slow")

if __name__ == "__main__":
    serve.Supervisor = partial(Supervisor, command=ENGINE)  # type: ignore[assignment, attr-defined]
    main()
