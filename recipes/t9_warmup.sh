#!/usr/bin/env bash
# Table 9: warm-up or not, plain or constrained, over the attacks. MODEL's own 2×2 of one attack is t4_protect.sh.
#   recipes/t9_warmup.sh MODEL BEHAVIORS OUT [learning rate]
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
for attack in harmful identity backdoor; do
  fathom poison "$attack" --behaviors "$behaviors" --rows 100 -o "$out/$attack/data"
  for objective in sft constrained; do
    for warmup in 0 10; do
      run="$out/$attack/$objective-$warmup"
      fathom finetune "$model" --data "$out/$attack/data/data.jsonl" --objective "$objective" -o "$run" \
        --set learning_rate="$rate" --set num_train_epochs=25 --set warmup_steps="$warmup"
      fathom audit "$run" --base none --behaviors "$behaviors" -o "$run-audit"
    done
  done
done
