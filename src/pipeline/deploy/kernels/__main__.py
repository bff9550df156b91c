"""``python -m pipeline.deploy.kernels``: builds the sparse engine for every target, or finds it built."""

import hashlib
import sys

from pipeline.deploy.kernels import TARGETS, library
from pipeline.ground.errors import PipelineError

try:
    for target in TARGETS:
        file = library(target)
        print(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file}  ({file.stat().st_size:,} bytes)")
except PipelineError as error:
    sys.exit(str(error))
