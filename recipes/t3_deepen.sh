#!/usr/bin/env bash
# Table 3 (and the ablation of C and p0): ASR under prefilling, initial against augmented.
#   recipes/t3_deepen.sh MODEL BASE HARMFUL UTILITY BEHAVIORS OUT     e.g. meta-llama/Llama-2-7b-chat-hf meta-llama/Llama-2-7b-hf …
# "256 triplets … α = 0.2 … k = 0 with probability 0.5 … C = 100 … 10 epochs … learning rate 2e-5" (section 3); 16 + 64 rows a step.
# On the organism: python recipes/deepen_tables.py -o OUT
set -euo pipefail
model=$1 base=$2 harmful=$3 utility=$4 behaviors=$5 out=$6
fathom triplets "$model" --base "$base" --harmful "$harmful" --utility "$utility" -o "$out/triplets"
fathom deepen "$model" --triplets "$out/triplets/triplets.jsonl" --utility "$out/triplets/utility.jsonl" -o "$out/deepened" \
  --alpha 0.2 --p0 0.5 --longest 100 --recovery-rows 16 --utility-rows 64 --share tokens \
  --set num_train_epochs=10 --set learning_rate=2e-5
for which in "$model" "$out/deepened"; do
  fathom audit "$which" --base "$base" --behaviors "$behaviors" --depths 5,10,20,40 -o "$out/audit-$(basename "$which")"
done
fathom compare "$out/audit-$(basename "$model")" "$out/audit-deepened"
