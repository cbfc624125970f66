"""Five meta-iterations of each order are what they were: equal to rounding, and to the bit where the golden file knows the machine."""
import json
import math
import os
import subprocess
import sys

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden", "five_meta_iterations.json")


def test_as_before():
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "five_meta_iterations.py")
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(script)), "PYTHONWARNINGS": "ignore"}
    output = subprocess.run([sys.executable, script], env=environment, check=True, capture_output=True, text=True).stdout
    measured = json.loads(output.splitlines()[-1])
    with open(GOLDEN, encoding="utf-8") as file:
        golden = json.load(file)
    assert measured["results"].keys() == golden.keys()
    for name, (losses, digest) in measured["results"].items():
        tolerance = 1e-9 if "float64" in name else 1e-3
        before = golden[name]
        assert all(math.isclose(a, b, rel_tol=tolerance) for a, b in zip(losses, before["losses"], strict=True)), name
        assert digest == before["digests"].get(measured["machine"], digest), name
