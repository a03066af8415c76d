#!/bin/sh
# A real run, small, through the command line, then the tests marked `current`, in whatever
# environment this is called in (make smoke, make smoke-current).
set -eu

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "Smoke test on $(python --version), TFX $(python -c '
from importlib.metadata import version
print(version("tfx"))')"
safelight --help >/dev/null
safelight doctor
safelight demo --profile smoke --set evaluate.min_accuracy=0.2 --workdir "$work/demo" --json \
    >"$work/result.json"
python - "$work/result.json" <<'PYTHON'
import json, sys
result = json.loads(open(sys.argv[1]).read().splitlines()[-1])
assert result["outcome"] == "pushed", result
assert result["version"] == 1 and result["quarantined"] == 0, result
assert sum(result["examples"].values()) == 600, result
print("pushed with accuracy", result["metrics"]["accuracy"])
PYTHON
safelight predict "$work/demo/data/7" --workdir "$work/demo" --output "$work/sevens.csv"
[ "$(wc -l <"$work/sevens.csv")" -eq 501 ]
pytest -m current -q
echo "The smoke test passed."
