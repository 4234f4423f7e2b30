#!/usr/bin/env bash
# Table 3 and the ablation of C and p0: ASR under prefilling, initial against augmented, then each deepening with another C or p0.
#   recipes/t3_deepen.sh MODEL BASE HARMFUL UTILITY BEHAVIORS OUT     e.g. meta-llama/Llama-2-7b-chat-hf meta-llama/Llama-2-7b-hf …
# "256 triplets … α = 0.2 … k = 0 with probability 0.5 … C = 100 … 10 epochs … learning rate 2e-5" (section 3); 16 + 64 rows a step.
# Answers are drawn as in the paper: T = 0.9, top-p 0.6, top-k 50, 512 tokens, 3 of each (section 5). C is varied at p0 = 0.5 and p0
# at C = 100; the paper's p (0.25, 0.5, 0.75, 1) is read as the share of rows that are given tokens, 1 - p0. LONGEST and P0 hold
# other values, "" for none. TRIPLETS, DEEPEN and AUDIT hold further options of each command. Killed, the same command goes on. The
# whole of it on the organism (its own figures: python recipes/deepen_tables.py -o OUT):
#   DEEPEN="--set learning_rate=1e-3" AUDIT="--limit 20 --max-new-tokens 130" \
#     recipes/t3_deepen.sh organism:natural organism:base organism organism organism runs/t3
set -euo pipefail
model=$1 base=$2 harmful=$3 utility=$4 behaviors=$5 out=$6
read -ra triplets <<< "${TRIPLETS:-}"
read -ra deepen <<< "${DEEPEN:-}"
read -ra audit <<< "${AUDIT:-}"
[ "$harmful" = organism ] || triplets=(--harmful "$harmful" "${triplets[@]}")
[ "$utility" = organism ] || triplets=(--utility "$utility" "${triplets[@]}")

deepen() { # NAME C P0
  fathom deepen "$model" --triplets "$out/triplets/triplets.jsonl" --utility "$out/triplets/utility.jsonl" -o "$out/$1" \
    --alpha 0.2 --p0 "$3" --anchor answers --loosened 0 --adversary 0 --longest "$2" --recovery-rows 16 --utility-rows 64 --share tokens --no-audit \
    --set num_train_epochs=10 --set learning_rate=2e-5 "${deepen[@]}"
}

audit() { # MODEL NAME
  fathom audit "$1" --base "$base" --behaviors "$behaviors" --depths 0,5,10,20,40 --temperature 0.9 --top-p 0.6 --top-k 50 \
    --samples 3 --max-new-tokens 512 -o "$out/audit-$2" "${audit[@]}"
}

ablate() { # NAME C P0
  deepen "$1" "$2" "$3"
  audit "$out/$1" "$1"
  fathom compare "$out/audit-deepened" "$out/audit-$1"
}

fathom triplets "$model" --base "$base" -o "$out/triplets" "${triplets[@]}"
deepen deepened 100 0.5
audit "$model" initial
audit "$out/deepened" deepened
fathom compare "$out/audit-initial" "$out/audit-deepened"
for longest in ${LONGEST-5 25 50}; do ablate "C$longest" "$longest" 0.5; done
for p0 in ${P0-0.75 0.25 0}; do ablate "p0-$p0" 100 "$p0"; done
