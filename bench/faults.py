"""Injects faults, and counts. The door to the campaign in tests/faults, which --help describes.

python bench/faults.py [R10 R11 ...] [--quick] [--seed 3] [--case 17]
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["OMP_NUM_THREADS"] = "1"  # networks this small gain nothing from threads
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # in place of this folder, where this file is called faults too

from faults.campaign import main  # noqa: E402

sys.exit(main())
