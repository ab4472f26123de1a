"""Python runs this at the start of every process under test, children of children included (tests/swarm puts the folder on
PYTHONPATH). Without the environment variable it does nothing."""

import os
import sys

if os.environ.get("DUGNAD_TEST_FAULTS"):
    import faulty

    faulty.install(sys.orig_argv)
