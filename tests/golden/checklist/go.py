import json
import os
from pathlib import Path
run_env = os.environ.get("RUN", "").strip()
if not run_env:
    print("[FAIL] RUN env var is empty")
    raise SystemExit(1)
run = Path(run_env)
def load_json(path: Path):
    return json.loads(path.read_text()) if path.exists() else None
ds = load_json(run / "dataset_qc.json")
rt = load_json(run / "tokenizer_roundtrip.json")
reg = load_json(run / "training_parity_regimen_latest.json")
checks = {}
checks["dataset_qc_pass"] = bool(ds and ds.get("status") == "pass")
checks["tokenizer_exact_match"] = bool(rt and rt.get("status") == "pass" and rt.get("exact_match") is True)
d1e1f1_ok = False
if reg and isinstance(reg.get("stages"), list):
    st = {s.get("id"): s.get("status") for s in reg["stages"] if isinstance(s, dict)}
    d1e1f1_ok = st.get("D1") == "PASS" and st.get("E1") == "PASS" and st.get("F1") == "PASS"
checks["D1_E1_F1_pass"] = d1e1f1_ok
def row_pass(idx: int) -> bool:
    p = run / f"parity_svg_row{idx}" / "parity_pipeline.json"
    if not p.exists():
        return False
    j = json.loads(p.read_text())
    return bool(j.get("status") == "pass")
checks["canary_row1_row2_pass"] = row_pass(1) and row_pass(2)
go = all(checks.values())
print(json.dumps({"GO": go, "checks": checks}, indent=2))
print("GO_EVIDENCE=PASS" if go else "GO_EVIDENCE=FAIL")
