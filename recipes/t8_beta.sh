#!/usr/bin/env bash
# Table 8: harmful examples under a uniform β of 0.1, 0.5 and 2, beside the biased schedule.
#   recipes/t8_beta.sh MODEL BEHAVIORS OUT [learning rate]
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
fathom poison harmful --behaviors "$behaviors" --rows 100 -o "$out/data"
for objective in constrained uniform:0.1 uniform:0.5 uniform:2; do
  fathom finetune "$model" --data "$out/data/data.jsonl" --objective "$objective" -o "$out/${objective/:/-}" \
    --set learning_rate="$rate" --set num_train_epochs=25
  fathom audit "$out/${objective/:/-}" --base none --behaviors "$behaviors" -o "$out/audit-${objective/:/-}"
done
