#!/usr/bin/env bash
# Table 8: harmful examples under a uniform β of 0.1, 0.5 and 2, beside the biased schedule.
#   recipes/t8_beta.sh MODEL BEHAVIORS OUT [learning rate]
# STRESS holds further options, as in t4_protect.sh.
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
read -ra stress <<< "${STRESS:-}"
fathom stress "$model" --attack harmful --objective constrained,uniform:0.1,uniform:0.5,uniform:2 --behaviors "$behaviors" \
  --rows 100 --rates "$rate" --warmup 10 --batch 64 --steps 50 --schedule linear --trainer fit --utility-bound 1 --depths 0 -o "$out" "${stress[@]}"
