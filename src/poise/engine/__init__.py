"""The engine's loop: scheduler and runner, bound to an inbox and an outbox by ports."""
