"""What a run is good for: evaluation, prediction, reports."""
