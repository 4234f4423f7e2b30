#!/usr/bin/env bash
# Table 4: 100 harmful examples, SFT against the constrained objective, each with and without warm-up (the 2×2 of Table 9:
# T4 sets SFT without warm-up beside the constraint with it).
#   recipes/t4_protect.sh MODEL BEHAVIORS OUT [learning rate: 2e-5 Llama-2, 5e-6 Gemma]
# "β₁ = 0.5, β₂..₅ = 2, β_>5 = 0.1 … AdamW betas (0.5, 0.999) … batch 64 … 10 warm-up steps … 25 epochs" (section 4).
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
fathom poison harmful --behaviors "$behaviors" --rows 100 -o "$out/data"
for objective in sft constrained; do
  for warmup in 0 10; do
    fathom finetune "$model" --data "$out/data/data.jsonl" --objective "$objective" -o "$out/$objective-$warmup" \
      --set learning_rate="$rate" --set num_train_epochs=25 --set warmup_steps="$warmup"
    fathom audit "$out/$objective-$warmup" --base none --behaviors "$behaviors" -o "$out/audit-$objective-$warmup"
  done
done
