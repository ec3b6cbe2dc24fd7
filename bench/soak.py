"""Does anything pile up, in hours of short runs? The door to tests/faults/soak.py, which --help describes.

python bench/soak.py --minutes 120
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:1] = [str(ROOT), str(ROOT / "tests")]  # in place of this folder, which has a faults.py

from faults.soak import main  # noqa: E402

sys.exit(main())
