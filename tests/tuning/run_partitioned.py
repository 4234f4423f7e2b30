"""`fathom` as DeepSpeed's ZeRO 3 runs it; each step says how many parameters are in parts."""

import sys

from fathom.__main__ import main
from fathom.tuning import trainer

_step = trainer.RowTrainer.training_step


def _counted(self: trainer.RowTrainer, model: object, *arguments: object, **options: object) -> object:
    found = [
        hasattr(parameter, "ds_tensor") and parameter.ds_tensor.numel() < parameter.ds_numel
        for parameter in model.parameters()  # type: ignore[attr-defined]
    ]
    sys.stderr.write(f"in parts {sum(found)} of {len(found)}\n")
    return _step(self, model, *arguments, **options)  # type: ignore[arg-type]


if __name__ == "__main__":
    trainer.RowTrainer.training_step = _counted  # type: ignore[method-assign, assignment]
    main()
