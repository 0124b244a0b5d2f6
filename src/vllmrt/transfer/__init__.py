"""The range engine: plan, journal, workers, hashes; for any source that can open bytes ``start`` to ``stop``."""
