#!/usr/bin/env bash
# Table 10: Table 9 on the deepened model (made by t3_deepen.sh).
#   recipes/t10_augmented.sh DEEPENED BEHAVIORS OUT [learning rate]
set -euo pipefail
"$(dirname "$0")/t9_warmup.sh" "$@"
