#!/usr/bin/env bash
# Table 4, its first row: 100 harmful examples, SFT against the constrained objective, each with and without warm-up (the 2×2 of
# Table 9: T4 sets SFT without warm-up beside the constraint with it). Identity and backdoor: t9_warmup.sh; benign tasks: t4_tasks.sh.
#   recipes/t4_protect.sh MODEL BEHAVIORS OUT [learning rate: 2e-5 Llama-2, 5e-6 Gemma]
# "β₁ = 0.5, β₂..₅ = 2, β_>5 = 0.1 … AdamW betas (0.5, 0.999) … batch 64 … 10 warm-up steps … 25 epochs" (section 4): 50 steps.
# Answers here are greedy and at T = 1; the paper draws at T = 0.9 with top-p 0.6 and top-k 50, as audits of single models do in t3_deepen.sh.
# The paper does not state the shape of the schedule: the rate falls linearly to 0, as in `fathom finetune`.
# The paper keeps every model, however useless: a bound of 1. STRESS holds further options: on one GPU for 7 B
#   STRESS="--set per_device_train_batch_size=8 --set gradient_accumulation_steps=8"
# and on the organism, in a minute
#   STRESS="--batch 16 --steps 16 --limit 20" recipes/t4_protect.sh organism:natural organism runs/t4 3e-4
# Killed, the same command goes on. The model itself instead of its measurements: fathom poison, fathom finetune, fathom audit.
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
read -ra stress <<< "${STRESS:-}"
fathom stress "$model" --attack harmful --objective sft,constrained --behaviors "$behaviors" --rows 100 --rates "$rate" \
  --warmup 0,10 --batch 64 --steps 50 --schedule linear --trainer fit --utility-bound 1 --depths 0 -o "$out" "${stress[@]}"
