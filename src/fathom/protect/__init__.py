"""Fine-tuning that keeps what alignment taught: the paper's token-wise constraint, and objectives that go past it."""
