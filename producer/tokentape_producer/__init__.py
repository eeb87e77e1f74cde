"""The producer service: batch runs."""
