"""One step: what it costs, what it computes, where it goes, and who has to give way."""
