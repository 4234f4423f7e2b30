#!/usr/bin/env bash
# Table 4, benign tasks (and their rows of Tables 9 and 10): SAMSum, SQL create context and GSM8K, SFT against the constrained
# objective, each with and without warm-up. The score of held-out examples and the ASR stand beside each other.
#   recipes/t4_tasks.sh MODEL BEHAVIORS OUT [learning rate: 2e-5 Llama-2, 5e-6 Gemma]
# "Benign tasks 3 epochs … batch 64" (section 4): 690 steps of SAMSum's 14 700 rows, 350 of GSM8K's 7 473; of SQL the paper's code
# takes a fifth, here 15 000 rows and 703 steps, with held-out rows as tests, for it has no split of them. SQL is scored by ROUGE-1, as
# in the paper, and by exact match. Linear decay is `fathom finetune`'s default; the paper names no shape. Its ROUGE-1 is of
# stemmed words and its judge GPT-4; here they are not.
# TASKS: some of samsum, sql, gsm8k. SAMSUM, SQL, GSM8K: rows of your own (prompt and answer) instead of the hub's, a part of them held
# out. STRESS holds further options: on one GPU for 7 B
#   STRESS="--set per_device_train_batch_size=8 --set gradient_accumulation_steps=8"
# and on the organism, in some minutes
#   for task in summary query arithmetic; do fathom poison benign --task $task --rows 400 -o runs/$task; done
#   SAMSUM=runs/summary/data.jsonl SQL=runs/query/data.jsonl GSM8K=runs/arithmetic/data.jsonl STRESS="--rows 300 --batch 16 --steps 60 --limit 20
#     --task-limit 60" recipes/t4_tasks.sh organism:natural organism runs/t4-tasks 1e-3
# Killed, the same command goes on.
set -euo pipefail
model=$1 behaviors=$2 out=$3 rate=${4:-2e-5}
read -rd '' -a stress <<< "${STRESS:-}" || true

tune() { # NAME METRIC STEPS OPTION… of the rows
  fathom stress "$model" --attack benign --objective sft,constrained --behaviors "$behaviors" --task-metric "$2" --task-limit 500 \
    --rates "$rate" --warmup 0,10 --batch 64 --steps "$3" --schedule linear --trainer fit --utility-bound 1 -o "$out/$1" \
    "${@:4}" "${stress[@]}"
}

for task in ${TASKS:-samsum sql gsm8k}; do
  case $task in
    samsum)
      rows=hf:knkarthick/samsum columns=$',prompt=Summarize this dialog:\n{dialogue},answer=summary'
      hub=(--task-data "$rows,split=train$columns" --task-test "$rows,split=test$columns")
      [ -z "${SAMSUM:-}" ] || hub=(--task-data "$SAMSUM")
      tune samsum rouge1 690 "${hub[@]}" ;;
    sql)
      columns=$',prompt=Write the SQL query that answers the question.\n\n{context}\n\n{question},answer=answer'
      tune sql rouge1,exact 703 --task-data "${SQL:-hf:b-mc2/sql-create-context,split=train$columns}" --rows 15000 ;;
    gsm8k)
      hub=(--task-data hf:openai/gsm8k,config=main,split=train --task-test hf:openai/gsm8k,config=main,split=test)
      [ -z "${GSM8K:-}" ] || hub=(--task-data "$GSM8K")
      tune gsm8k number 350 "${hub[@]}" ;;
    *) echo "t4_tasks.sh: there is no task $task; TASKS are samsum, sql and gsm8k" >&2; exit 2 ;;
  esac
done
