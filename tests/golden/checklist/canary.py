import json
import os
from pathlib import Path
from statistics import mean
TH_MAX = 1e-4
TH_MEAN = 5e-5
TH_PARAM = 1e-4
run_env = os.environ.get("RUN", "").strip()
if not run_env:
    print("[FAIL] RUN env var is empty")
    raise SystemExit(1)
root = Path(run_env)
ok = True
for idx in (1, 2):
    run_dir = root / f"parity_svg_row{idx}" / ".ck_pipeline"
    work_dirs = sorted([p for p in run_dir.glob("ascii_bpe_*") if p.is_dir()])
    if not work_dirs:
        print(f"[FAIL] row{idx}: missing {run_dir}/ascii_bpe_*")
        ok = False
        continue
    w = work_dirs[-1]
    ck = json.loads((w / "train_ck.json").read_text())
    pt = json.loads((w / "train_torch_ref.json").read_text())
    c = [float(x["loss_ck"]) for x in ck.get("loss_curve", [])]
    t = [float(x["loss"]) for x in pt.get("loss_curve", [])]
    n = min(len(c), len(t))
    if n == 0:
        print(f"[FAIL] row{idx}: empty loss curves")
        ok = False
        continue
    diffs = [abs(c[i] - t[i]) for i in range(n)]
    max_abs = max(diffs)
    mean_abs = mean(diffs)
    final_param = float(ck.get("final_param_max_abs_diff", 1.0))
    passed = max_abs <= TH_MAX and mean_abs <= TH_MEAN and final_param <= TH_PARAM
    print(f"[row{idx}] max_abs={max_abs:.6e} mean_abs={mean_abs:.6e} final_param={final_param:.6e} pass={passed}")
    ok = ok and passed
print("CANARY_PARITY_GATE=PASS" if ok else "CANARY_PARITY_GATE=FAIL")
