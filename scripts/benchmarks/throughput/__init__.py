"""How fast pretraining is: the contenders, what is measured of them, and how it is told."""

import sys
from pathlib import Path

# Behind the installed packages, for scripts/evaluate.py has the name of one: scripts/pretrain.py is one of the contenders.
sys.path.append(str(Path(__file__).resolve().parents[2]))
