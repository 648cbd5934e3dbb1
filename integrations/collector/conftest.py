"""Put the collector, and the library where it is not installed, on the path of the tests."""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(_HERE))
if importlib.util.find_spec("power_manager") is None:
    sys.path.insert(0, str(_HERE.parents[1]))
