"""Tables and figures, rebuilt from records alone; no torch import."""
