"""The audit log: who asked for what, and what came of it, as a chain of lines that shows every change."""
