"""Checks what the demo printed: the model got better, by as much as the README says.

embedfit demo --json > demo.json && python tests/demo.py demo.json
"""

import json
import sys
from pathlib import Path

result = json.loads(Path(sys.argv[1]).read_text())
recall = {row["metric"]: row["tuned"] for row in result["differences"]}
assert result["verdict"] == "better", result["verdict"]
assert recall["recall@1"] >= 0.6, recall
assert recall["recall@5"] >= 0.9, recall
print(result.get("sentence", recall))
