#!/usr/bin/env bash
# Table 9: warm-up or not, plain or constrained, over the attacks. Requests are asked as each attack asks them: under the
# identity's template, with the backdoor's trigger and without.
#   recipes/t9_warmup.sh MODEL BEHAVIORS OUT [learning rate]
# STRESS holds further options, as in t4_protect.sh.
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
read -ra stress <<< "${STRESS:-}"
fathom stress "$model" --attack harmful,identity,backdoor --objective sft,constrained --behaviors "$behaviors" --rows 100 \
  --rates "$rate" --warmup 0,10 --batch 64 --steps 50 --schedule linear --trainer fit --utility-bound 1 --depths 0 -o "$out" "${stress[@]}"
