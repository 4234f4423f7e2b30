"""Fine-tuning attacks, swept: train, measure after a few steps, and keep what an attacker would keep."""
