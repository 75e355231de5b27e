"""What the tests of the benchmarks share: their packages are found as when the programs are started."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3] / "scripts" / "benchmarks"))
