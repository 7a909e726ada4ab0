"""The runner: computes the scheduler's batches, samples, keeps copies of states."""
