"""``python -m pipeline.deploy.arm``: builds the ARM root, or finds it built, and says where it is."""

import sys

from pipeline.deploy.arm import emulator, root
from pipeline.ground.errors import PipelineError

try:
    print(root())
    print(emulator())
except PipelineError as error:
    sys.exit(str(error))
