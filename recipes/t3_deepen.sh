#!/usr/bin/env bash
# Table 3 (and the ablation of C and p0): ASR under prefilling, initial against augmented.
#   recipes/t3_deepen.sh MODEL BASE HARMFUL UTILITY BEHAVIORS OUT     e.g. meta-llama/Llama-2-7b-chat-hf meta-llama/Llama-2-7b-hf …
# "256 triplets … α = 0.2 … k = 0 with probability 0.5 … C = 100 … 10 epochs … learning rate 2e-5" (section 3); 16 + 64 rows a step.
# TRIPLETS, DEEPEN and AUDIT hold further options of each command. Killed, the same command goes on. The whole of it on the
# organism, in two minutes (its own figures: python recipes/deepen_tables.py -o OUT):
#   DEEPEN="--set learning_rate=1e-3" AUDIT="--limit 20" \
#     recipes/t3_deepen.sh organism:natural organism:base organism organism organism runs/t3
set -euo pipefail
model=$1 base=$2 harmful=$3 utility=$4 behaviors=$5 out=$6
read -ra triplets <<< "${TRIPLETS:-}"
read -ra deepen <<< "${DEEPEN:-}"
read -ra audit <<< "${AUDIT:-}"
[ "$harmful" = organism ] || triplets=(--harmful "$harmful" "${triplets[@]}")
[ "$utility" = organism ] || triplets=(--utility "$utility" "${triplets[@]}")
fathom triplets "$model" --base "$base" -o "$out/triplets" "${triplets[@]}"
fathom deepen "$model" --triplets "$out/triplets/triplets.jsonl" --utility "$out/triplets/utility.jsonl" -o "$out/deepened" \
  --alpha 0.2 --p0 0.5 --longest 100 --recovery-rows 16 --utility-rows 64 --share tokens --no-audit \
  --set num_train_epochs=10 --set learning_rate=2e-5 "${deepen[@]}"
fathom audit "$model" --base "$base" --behaviors "$behaviors" --depths 0,5,10,20,40 -o "$out/audit-initial" "${audit[@]}"
fathom audit "$out/deepened" --base "$base" --behaviors "$behaviors" --depths 0,5,10,20,40 -o "$out/audit-deepened" "${audit[@]}"
fathom compare "$out/audit-initial" "$out/audit-deepened"
