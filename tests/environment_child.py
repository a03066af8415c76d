"""A child of `train.run_child` that writes its environment to the file that it is given."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

Path(sys.argv[1]).write_text(json.dumps(dict(os.environ)))
