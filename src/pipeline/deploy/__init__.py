"""From a finished round to a folder that runs on the board: export, int8, packing, checks, proof on ARM."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # else it calls home, from threads that disturb times
